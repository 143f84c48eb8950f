"""Cost of a training step: ``python benchmarks/step_cost.py --quick``.

Plain fine-tuning against masked distillation (object mask 0.3, single fill, feature distance) on
randomly initialised models of the real architectures with a head of 1,000 classes. Counted: FLOPs
an image (a multiply-add is two) and the bytes that autograd keeps. Measured: seconds a step and
peak resident memory, as ratios of one run. Nothing here depends on the values of the weights.
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
import statistics
import time
from typing import Literal

import torch
from exact_cost import step_cost
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import cfmask
from cfmask import Counterfactual, ObjectMask, SingleFill
from cfmask.commands.parser import OneLineParser
from cfmask.methods import Method
from cfmask.precision import bf16_unit

QUICK = ["ViT-B-32-quickgelu"]
MODELS = [*QUICK, "ViT-B-16", "RN50"]
# From the same counts on the method's released code: plain, masked. GFLOP an image.
RELEASED = {"ViT-B-32-quickgelu": (26.2, 78.6)}


def methods(model: str) -> dict[str, Method]:
    """The methods to compare, of a CLIP with a head of 1,000 classes."""
    torch.manual_seed(0)
    names = [str(k) for k in range(1000)]
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    relevance = cfmask.GradCAM() if model.startswith("RN") else cfmask.AttentionRelevance()
    classifier = cfmask.OpenClipClassifier(model, None, names, head="linear")

    def masked(of: Literal["logit", "loss"]) -> Method:
        return cfmask.MaskedDistillation(
            copy.deepcopy(classifier), make, relevance, relevance_of=of
        )

    found = {"masked": masked("logit"), "of loss": masked("loss")}
    found = {"plain": cfmask.FineTuning(classifier), **found}
    for method in found.values():
        # As in a trainer, which frees the graph of each part of the loss at once.
        method.backward_now = at_once  # type: ignore[method-assign]
    return found


def at_once(loss: torch.Tensor) -> torch.Tensor:
    """Backward pass of one part of a loss, then the loss without its graph."""
    loss.backward()
    return loss.detach()


def step(method: Method, count: int, precision: str = "fp32") -> None:
    """Forward and backward of one step, without the optimiser."""
    images = torch.rand(count, 3, *method.classifier.image_size)
    labels = torch.randint(1000, (count,))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = torch.stack(list(method.losses(images, labels).values())).sum()
    loss.backward()
    method.zero_grad()


def seconds(method: Method, precision: str, batch: int, repeats: int) -> float:
    """Median time of a step, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step(method, batch, precision)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak(model: str, name: str, batch: int) -> int:
    """Peak resident bytes of a process that takes two steps."""
    method = methods(model)[name]
    for _ in range(2):
        step(method, batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_ratio(model: str, batch: int) -> float:
    """Peak resident memory of masked steps divided by that of plain ones, each process alone."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(model, name, batch) for name in ("masked", "plain")]
        masked, plain = pool.starmap(peak, jobs, chunksize=1)
    return masked / plain


def main(quick: bool = False, batch: int = 8, repeats: int = 5, memory_batch: int = 48) -> None:
    """Print the table.

    Args:
        quick: ViT-B/32 alone, fewer repeats, no resident memory.
        batch: images a timed step.
        repeats: timed steps.
        memory_batch: images of the step whose memory is taken.
    """
    table = Table(title="A masked training step and a plain one")
    timed = ("fp32", "bf16") if bf16_unit("cpu") else ("fp32",)
    for column in ("model", "", "GFLOP an image", "saved bytes", *timed, "resident"):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for model in QUICK if quick else MODELS:
        found = methods(model)
        costs = {name: step_cost(method, memory_batch) for name, method in found.items()}
        times = {
            (name, precision): seconds(method, precision, batch, 2 if quick else repeats)
            for name, method in found.items()
            for precision in timed
        }
        resident = None if quick else peak_ratio(model, memory_batch)
        for name, cost in costs.items():
            ratios = [f"{times[name, p] / times['plain', p]:.2f} x" for p in timed]
            saved = cost.saved_bytes / costs["plain"].saved_bytes
            held = f"{resident:.2f} x" if resident and name == "masked" else ""
            table.add_row(model, name, f"{cost.flops / 1e9:.1f}", f"{saved:.2f} x", *ratios, held)
        if model in RELEASED:
            table.add_row(model, "released code", "{} / {}".format(*RELEASED[model]))
    console = Console(width=110)
    console.print(table)
    console.print(
        f"x: divided by the plain step. Time: batch {batch}, CPU; memory: {memory_batch}."
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False, parser_class=OneLineParser)
