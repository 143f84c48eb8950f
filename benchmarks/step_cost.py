"""Cost of a training step: ``python benchmarks/step_cost.py --quick true``.

Prints counted FLOPs an image (a multiply-add is two) of plain fine-tuning and of masked
distillation, for randomly initialised models of the real architectures, and the measured time of a
step, masked divided by plain, in fp32 and bf16. Nothing here depends on the values of the weights.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import cfmask
from cfmask import Counterfactual, ObjectMask, SingleFill
from cfmask.methods import Method

# From the same count on the method's released code: plain, masked. GFLOP an image.
RELEASED = {"ViT-B-32-quickgelu": (26.2, 78.6)}


def methods(model: str) -> dict[str, Method]:
    """Plain fine-tuning and masked distillation of a CLIP with a head of 1,000 classes."""
    torch.manual_seed(0)
    names = [str(k) for k in range(1000)]
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    relevance = cfmask.GradCAM() if model.startswith("RN") else cfmask.AttentionRelevance()
    classifier = cfmask.OpenClipClassifier(model, None, names, head="linear")
    masked = cfmask.MaskedDistillation(copy.deepcopy(classifier), make, relevance)
    plain = cfmask.FineTuning(classifier)
    for method in (plain, masked):
        method.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return {"plain": plain, "masked": masked}


def step(method: Method, images: Tensor, labels: Tensor, precision: str = "fp32") -> None:
    """Forward and backward of one step, without the optimiser."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = torch.stack(list(method.losses(images, labels).values())).sum()
    loss.backward()
    method.zero_grad()


def gigaflops(method: Method, batch: int = 2) -> float:
    """Counted FLOPs of a step an image, in units of 10^9. Nothing is computed: shapes suffice."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        step(method, *batch_for(method, batch))
    return counter.get_total_flops() / batch / 1e9


def batch_for(method: Method, count: int) -> tuple[Tensor, Tensor]:
    """Random images of the size that the model takes, with labels."""
    images = torch.rand(count, 3, *method.classifier.image_size)
    return images, torch.randint(1000, (count,))


def seconds(method: Method, precision: str, batch: int, repeats: int) -> float:
    """Median time of a step, after one that is not counted."""
    images, labels = batch_for(method, batch)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step(method, images, labels, precision)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(quick: bool = False, batch: int = 8, repeats: int = 5) -> None:
    """Print the table.

    Args:
        quick: ViT-B/32 alone, fewer repeats.
        batch: images a timed step.
        repeats: timed steps.
    """
    models = ["ViT-B-32-quickgelu"] if quick else ["ViT-B-32-quickgelu", "ViT-B-16", "RN50"]
    table = Table(title="Cost of a training step, GFLOP an image and time")
    for column in ("model", "plain", "masked", "released code", "time fp32", "time bf16"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in models:
        pair = methods(model)
        flops = {name: gigaflops(method) for name, method in pair.items()}
        ratios = []
        for precision in ("fp32", "bf16"):
            times = {
                name: seconds(method, precision, batch, 2 if quick else repeats)
                for name, method in pair.items()
            }
            ratios.append(f"{times['masked'] / times['plain']:.2f} x")
        released = " / ".join(f"{value}" for value in RELEASED.get(model, ())) or "–"
        table.add_row(model, f"{flops['plain']:.1f}", f"{flops['masked']:.1f}", released, *ratios)
    console = Console(width=100)
    console.print(table)
    console.print("Time: masked step divided by plain step, same batch, CPU.")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
