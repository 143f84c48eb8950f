"""What a GPU gives of what it has: ``python benchmarks/gpu.py``; ``--quick`` for its form on a CPU.

Images a second of plain, distilled and masked steps (object mask 0.3, single fill, feature
distance) on synthetic images, and their share of the limit that the device's own matrix products
set: a large bf16 product, timed in the same run, divided by the FLOPs of the passes that a step
makes. Beside them, with the same images, what one would write first: open_clip and AdamW in a loop,
and a masked step whose relevance comes from a pass of its own in fp32 that keeps all attention
maps. Then evaluation, and the images a second of a loader's core. Peak memory of each.
"""

from __future__ import annotations

import copy
import csv
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import loader as loaders
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from step_cost import at_once
from torch import Tensor

import cfmask
from cfmask import Classifier, Counterfactual, ObjectMask, SingleFill, digits, processes
from cfmask.attention import Attention, Given, attention_map
from cfmask.commands.parser import OneLineParser
from cfmask.files import write_text
from cfmask.images import to_unit
from cfmask.methods import Method
from cfmask.relevance import default_relevance, normalise
from cfmask.runs.cost import forward_cost

MODELS = ("ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "RN50")
QUICK = ("tiny-clip",)
Step = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        device: its name.
        model: of the encoder; empty for a loader.
        what: was measured.
        batch: images at a time.
        images_a_second: on one device, or of one core.
        share: of the limit in [0, 1]; NaN where there is none.
        peak_gb: memory of the device; NaN on a CPU.
        limit_tflops: of a bf16 product on this device.
    """

    device: str
    model: str
    what: str
    batch: int
    images_a_second: float
    share: float
    peak_gb: float
    limit_tflops: float


def matrix_limit(device: torch.device, size: int) -> float:
    """FLOP a second of a bf16 product of two square matrices, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * size**3 / seconds(lambda: a @ b, device, 3) for _ in range(5))


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean time of a call after one that is not counted."""
    run()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - began) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def built(model: str) -> Classifier:
    """A CLIP with random weights and a linear head; of 1,000 classes, but for the tiny one."""
    torch.manual_seed(0)
    names = digits.CLASS_NAMES if model in QUICK else [str(k) for k in range(1000)]
    return cfmask.OpenClipClassifier(model, None, names, head="linear")


def ours(method: Method, device: torch.device) -> Step:
    """A step of one of our methods, as a trainer takes it."""
    method.backward_now = at_once  # type: ignore[method-assign]
    for module in method.modules():
        if isinstance(module, Classifier):
            module.suit(device)
    method.to(device).train()
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=device.type == "cuda" or None)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.stack(list(method.losses(to_unit(images), labels).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_loop(classifier: Classifier, device: torch.device) -> Step:
    """What one would write first: an open_clip tower, a linear head, AdamW, a look at the loss."""
    tower, head = classifier.encoder.to(device).train(), classifier.head.to(device)
    mean, std = classifier.mean.to(device), classifier.std.to(device)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], 1e-5)

    def step(images: Tensor, labels: Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16):
            logits = head(tower((images.float() / 255 - mean) / std))
            loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class KeptMaps(Attention):
    """Attention that is computed explicitly and keeps its maps in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        """See `Attention.attend`."""
        self.maps.append(attention_map(query, key, given))
        return self.maps[-1] @ value


def naive_relevance(student: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Attention relevance (B, h, w) by all maps, their gradients and products of matrices."""
    tokens = student.tokens
    if tokens is None:
        return default_relevance(student).explain(student, images, labels)[1]
    with KeptMaps() as attention:
        score = student(images).gather(1, labels[:, None]).sum()
    gradients = torch.autograd.grad(score, attention.maps)
    length = attention.maps[0].shape[-1]
    found = torch.eye(length, device=images.device).expand(len(images), -1, -1)
    for kept, gradient in zip(attention.maps, gradients):
        step = (kept * gradient).clamp(min=0).mean(1)
        # The last block is computed for the class token alone.
        found = found + F.pad(step, (0, 0, 0, length - step.shape[1])) @ found
    return normalise(found[:, 0, tokens.prefix :].detach().unflatten(1, tokens.grid))


def naive_masked(classifier: Classifier, device: torch.device) -> Step:
    """A masked step whose relevance comes from a pass of its own in fp32."""
    student, teacher = classifier.to(device), copy.deepcopy(classifier).to(device).eval()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-5)
    make = Counterfactual(ObjectMask(0.3), SingleFill())

    def step(images: Tensor, labels: Tensor) -> float:
        images = images.float() / 255
        masked, _ = make(images, naive_relevance(student, images, labels))
        with torch.autocast(device.type, torch.bfloat16):
            task = F.cross_entropy(student(images), labels)
            with torch.no_grad():
                target = teacher.features(masked)
            loss = task + 30 * F.mse_loss(student.features(masked), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def steps_of(model: str, device: torch.device) -> Iterator[tuple[str, float, Step]]:
    """Name of a step, the forward passes that its limit counts, and the step itself."""
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    for name, build in {
        "plain": cfmask.FineTuning,
        "distilled": cfmask.Distillation,
        "masked": lambda classifier: cfmask.MaskedDistillation(classifier, make),
    }.items():
        method = build(built(model))
        yield name, method.passes(), ours(method, device)
    yield "open_clip and AdamW", 3.0, plain_loop(built(model), device)
    masked = cfmask.MaskedDistillation(built(model), make)
    yield "naive masked", masked.passes(), naive_masked(built(model), device)


def fits(step: Step, batch: int, draw: Callable[[int], tuple[Tensor, Tensor]]) -> bool:
    """Whether a step of so many images fits into the memory of the device."""
    try:
        step(*draw(batch))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def measured(
    model: str, batches: list[int], repeats: int, device: torch.device, limit: float
) -> Iterator[Line]:
    """All steps of a model, at a batch and at the largest by doubling that fits, and evaluation."""
    classifier = built(model)
    cost, (high, wide) = forward_cost(classifier), classifier.image_size
    flops = cost.flops if cost else math.nan
    classes = len(classifier.class_names)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(256, (batch, 3, high, wide), dtype=torch.uint8, device=device)
        return images, torch.randint(classes, (batch,), device=device)

    def timed(what: str, passes: float, step: Step, batch: int) -> Line:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        given = draw(batch)
        rate = batch / seconds(lambda: step(*given), device, repeats)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else math.nan
        share = rate * passes * flops / limit
        return Line(name, model, what, batch, rate, share, peak, limit / 1e12)

    for what, passes, step in steps_of(model, device):
        sizes = [batch for batch in batches if fits(step, batch, draw)]
        if device.type == "cuda":
            largest = max(sizes, default=1)
            while fits(step, 2 * largest, draw):
                largest *= 2
            sizes = sorted({*sizes, largest})
        for batch in sizes:
            yield timed(what, passes, step, batch)
    classifier.to(device).eval().suit(device)

    @torch.inference_mode()
    def answer(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return classifier(to_unit(images))

    yield timed("evaluation", 1.0, answer, batches[0])


def loading(images: int) -> Line:
    """Images a second that one core of this machine decodes and resizes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaders.write_photographs(Path(folder), images, quality=90)
        rate = images / loaders.seconds(loaders.fast(Path(folder)))
    return Line("CPU", "", "loader, one core", loaders.BATCH, rate, math.nan, math.nan, math.nan)


def table(lines: list[Line], decoded: float) -> Table:
    """The measurements, and how many cores must decode to keep up with each."""
    names = ("model", "step", "batch", "images/s", "share of limit", "peak GB", "decoding cores")
    shown = Table(*names)
    for line in lines:
        values = (f"{line.images_a_second:,.1f}", f"{line.share:.1%}", f"{line.peak_gb:.1f}")
        cores = math.ceil(line.images_a_second / decoded)
        shown.add_row(line.model, line.what, f"{line.batch}", *values, f"{cores}")
    return shown


def main(
    quick: bool = False,
    models: list[str] = list(MODELS),  # noqa: B006
    batch: int = 512,
    repeats: int = 20,
    out: str | None = None,
) -> None:
    """Print the table.

    Args:
        quick: a tiny model with a small batch, on any device.
        models: open_clip names.
        batch: images a step; the largest that fits is measured too.
        repeats: timed steps.
        out: CSV file to write.
    """
    device = processes.device()
    if device.type == "cpu" and not quick:
        sys.exit("error: Expected a GPU, but there is none; --quick shows the form on a CPU.")
    models, batch, repeats = (list(QUICK), 4, 1) if quick else (models, batch, repeats)
    limit = matrix_limit(device, 256 if quick else 8192)
    lines = [line for model in models for line in measured(model, [batch], repeats, device, limit)]
    loader = loading(8 if quick else 200)
    console = Console(width=110)
    console.print(table(lines, loader.images_a_second))
    console.print(
        f"Limit: {limit / 1e12:.3g} TFLOP/s in bf16 on {lines[0].device}. A core loads "
        f"{loader.images_a_second:.0f} images/s; {os.cpu_count()} cores are here."
    )
    if out:
        rows: list[dict[str, Any]] = [asdict(line) for line in [*lines, loader]]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(out), text.getvalue())


if __name__ == "__main__":
    auto_cli(main, as_positional=False, parser_class=OneLineParser)
