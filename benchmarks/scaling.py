"""Training at size: ``python benchmarks/scaling.py``, or ``--part planned`` to compute only.

Planned: what ImageNet takes, from counted FLOPs and bytes of the recipes in configs/imagenet, for a
stated rate of a GPU and of a core that decodes. Measured: images a second of the demo's training on
1 and 2 processes, one core each, and seconds a step against batch, image size and patches.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.multiprocessing
from exact_cost import exact_memory, step_cost
from jsonargparse import auto_cli

import cfmask
from cfmask import Counterfactual, DigitsData, MaskedDistillation, ObjectMask, SingleFill, digits
from cfmask.runs.trainer import Trainer

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MODELS = {
    "CLIP ViT-B/32": "ViT-B-32-quickgelu",
    "CLIP ViT-B/16": "ViT-B-16-quickgelu",
    "CLIP ViT-L/14": "ViT-L-14-quickgelu",
}
# ImageNet's training images, less those held out to choose the epoch.
IMAGES = 1_281_167 - 10_240
EPOCHS = 10
BATCH = 512
DEVICES = (1, 8, 64)
# Assumed, and said in the page: FLOP a second that a GPU reaches in bf16, about half of an A100's
# 312 TFLOP/s; images a second that one core decodes and resizes.
RATE = 150e12
DECODED = 500


@cache
def masked(model: str) -> MaskedDistillation:
    """The recipe of one model with random weights and a head of 1,000 classes."""
    names = [str(k) for k in range(1000)]
    classifier = cfmask.OpenClipClassifier(model, None, names, head="linear")
    return MaskedDistillation(classifier, Counterfactual(ObjectMask(0.3), SingleFill()))


def planned(label: str, devices: int) -> list[str]:
    """Row of a model on so many GPUs, which share the recipe's batch."""
    method = masked(MODELS[label])
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    share = BATCH // devices
    cost = step_cost(method, share, "bf16-mixed", fused=True, fake=True)
    total = cost.flops * IMAGES * EPOCHS
    speed = devices * RATE / cost.flops
    # Each device sends and receives 2 (n - 1) / n of the gradients in a ring.
    traffic = 2 * (devices - 1) / devices * 4 * trained
    return [
        label,
        f"{devices}",
        f"{share}",
        f"{EPOCHS * math.ceil(IMAGES // devices / share):,}",
        f"{total / 1e18:.2f}",
        f"{sum(exact_memory(method, share, cost).values()) / 1e9:.1f}",
        f"{traffic / 1e9:.2f}",
        f"{total / devices / RATE / 3600:.2g}",
        f"{speed:,.0f}",
        f"{math.ceil(speed / DECODED)}",
    ]


PLANNED = [
    *("model", "GPUs", "images a GPU", "steps", "EFLOP in all", "GB a GPU"),
    *("GB sent a GPU and step", "hours", "images/s", "decoding cores"),
]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Watch(pl.Callback):
    """Images a second of the steps after the first few."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        """Note when this step ended."""
        if trainer.global_step == self.first:
            self.began = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "began", time.perf_counter())
        self.images = (trainer.global_step - self.first) * len(batch[1]) * trainer.world_size


def train_one_of(rank: int, world: int, steps: int, port: int, out: Path) -> None:
    """The demo's training in one of several processes, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "scaling"}
    os.environ.update({name: str(value) for name, value in places.items()})
    classifier = cfmask.OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    method = MaskedDistillation(classifier, make, distance="relative_feature", distill_weight=4)
    watch = Watch(first=3)
    trainer = Trainer(
        max_steps=3 + steps, precision="auto", accelerator="cpu", devices=world,
        strategy="ddp", gradient_clip_val=1.0, callbacks=[watch], logger=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, DigitsData(train_images=64 * world * (4 + steps), val_images=2))
    if rank == 0:
        out.write_text(str(watch.images / watch.seconds))


def throughput(world: int, steps: int, folder: Path) -> float:
    """Images a second of several processes together."""
    out = folder / "speed"
    args = (world, steps, 20000 + os.getpid() % 20000 + world, out)
    torch.multiprocessing.start_processes(train_one_of, args, nprocs=world, start_method="spawn")
    return float(out.read_text())


def processes(steps: int, rounds: int, folder: Path) -> list[list[str]]:
    """Rows of 1 and of 2 processes, median of turns."""
    speeds = {world: [] for world in (1, 2)}  # type: dict[int, list[float]]
    for _ in range(rounds):
        for world, found in speeds.items():
            found.append(throughput(world, steps, folder))
    alone = statistics.median(speeds[1])
    medians = {world: statistics.median(found) for world, found in speeds.items()}
    return [[f"{w}", f"{v:.0f}", f"{v / alone:.2f}"] for w, v in medians.items()]


# One thing changes from row to row: batch, image size, patch size.
STEPS = [
    *((batch, 224, 32) for batch in (4, 8, 16, 32)),
    *((8, size, 32) for size in (96, 160, 288)),
    (8, 224, 16),
]


def at_once(loss: torch.Tensor) -> torch.Tensor:
    """Backward pass of one part of a loss as in a trainer, then the loss without its graph."""
    loss.backward()
    return loss.detach()


def step_row(batch: int, size: int, patch: int) -> list[str]:
    """Seconds of a masked step of a small vision transformer, on one core."""
    names = [str(k) for k in range(10)]
    model = f"vit_small_patch{patch}_224"
    classifier = cfmask.TimmClassifier(model, False, names, image_size=size)
    method = MaskedDistillation(classifier, Counterfactual(ObjectMask(0.3), SingleFill()))
    method.backward_now = at_once  # type: ignore[method-assign]
    images, labels = torch.rand(batch, 3, size, size), torch.randint(10, (batch,))

    def step() -> float:
        began = time.perf_counter()
        torch.stack(list(method.losses(images, labels).values())).sum().backward()
        return time.perf_counter() - began

    step()
    seconds = statistics.median(step() for _ in range(3))
    patches = math.prod(classifier.grid)
    return [f"{batch}", f"{size}", f"{patches}", f"{1000 * seconds:.0f}", f"{batch / seconds:.1f}"]


def scaling(
    part: Literal["planned", "processes", "steps", "all"] = "all",
    steps: int = 30,
    rounds: int = 3,
    models: list[str] = list(MODELS),  # noqa: B006
) -> None:
    """Print the tables of docs/scaling.md.

    Args:
        part: which table.
        steps: of each measured training.
        rounds: of 1 and 2 processes in turn.
        models: of the computed table.
    """
    if part in ("planned", "all"):
        print(table(PLANNED, [planned(label, n) for label in models for n in DEVICES]))
    torch.set_num_threads(1)
    if part in ("processes", "all"):
        with tempfile.TemporaryDirectory() as folder:
            rows = processes(steps, rounds, Path(folder))
        print("\n" + table(["processes", "images/s", "times one process"], rows))
    if part in ("steps", "all"):
        head = ["batch", "image size, px", "patches", "ms a step", "images/s"]
        print("\n" + table(head, [step_row(*case) for case in STEPS]))


if __name__ == "__main__":
    auto_cli(scaling)
