"""Summary: what a training run will do, said before it starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table
from torch import Tensor

from cfmask.files import write_text
from cfmask.heads import HEAD_ORIGINS
from cfmask.methods import Method
from cfmask.runs.averaging import TrajectoryAverage
from cfmask.runs.cost import forward_cost, memory, text_cost
from cfmask.terminal import show_table

SUMMARY = "summary.json"


@dataclass(frozen=True)
class RunSummary:
    """What a training run will do.

    Attributes:
        method: name of the method's class.
        model: name of the encoder.
        head: kind of the head, and what its weights come from.
        parameters: of the student.
        trainable: those of them that are trained.
        teacher: parameters of frozen copies.
        classes: K.
        train_images: images an epoch.
        val_images: images of each validation.
        reading: how image files are read; empty where there are none.
        devices: processes that share a batch.
        batch_per_device: images of a forward pass.
        accumulate: forward passes of an optimiser step.
        epochs: planned; None if only the steps are limited.
        steps: optimiser steps in all.
        precision: as Lightning names it.
        why: what decided on it, if it was `auto`.
        passes: forward passes that a training step makes of an image; see `Method.passes`. Those
            of text towers count by their FLOPs. None if unknown.
        flops_per_image: about, of a training step, a multiply-add as two; None if encoder or
            passes cannot be counted.
        memory: estimated bytes on a device, by what they hold; without activations if the encoder
            cannot be counted.
    """

    method: str
    model: str
    head: str
    parameters: int
    trainable: int
    teacher: int
    classes: int
    train_images: int
    val_images: int
    reading: str
    devices: int
    batch_per_device: int
    accumulate: int
    epochs: int | None
    steps: int
    precision: str
    why: str
    passes: float | None
    flops_per_image: float | None
    memory: dict[str, int]

    @property
    def batch(self) -> int:
        """Images of an optimiser step, over all devices."""
        return self.batch_per_device * self.devices * self.accumulate

    @property
    def flops(self) -> float | None:
        """Of the whole training, validation left out."""
        if self.flops_per_image is None:
            return None
        return self.flops_per_image * self.batch * self.steps

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of a device in all."""
        return sum(self.memory.values())

    def save(self, path: Path) -> None:
        """Write as JSON."""
        totals = {name: getattr(self, name) for name in ("batch", "flops", "memory_bytes")}
        write_text(path, json.dumps({**asdict(self), **totals}, indent=1) + "\n")

    def table(self) -> Table:
        """The same for the terminal."""
        epochs = f" ({self.epochs} epochs)" if self.epochs else ""
        parts = ", ".join(f"{name} {_short(size)}B" for name, size in self.memory.items() if size)
        uncounted = "" if "activations" in self.memory else "; activations not counted"
        rows = {
            "method": f"{self.method} of {self.model}, {self.classes} classes",
            "head": self.head,
            "parameters": f"{_short(self.parameters)}, {_short(self.trainable)} trainable"
            + (f"; frozen copy {_short(self.teacher)}" if self.teacher else ""),
            "images": f"{self.train_images:,} to train on, {self.val_images:,} to choose the epoch"
            + (f"; {self.reading}" if self.reading else ""),
            "batch": f"{self.batch} images a step: {self.batch_per_device} on a device at a time, "
            f"devices {self.devices}, passes accumulated {self.accumulate}",
            "steps": f"{self.steps:,}{epochs}",
            "cost": self._cost(),
            "precision": self.precision + (f" ({self.why})" if self.why else ""),
            "memory": f"about {_short(self.memory_bytes)}B a device: {parts}{uncounted}",
        }
        table = Table(title="This run", show_header=False)
        for name, text in rows.items():
            table.add_row(name, text)
        return table

    def _cost(self) -> str:
        if self.flops_per_image is None or self.flops is None:
            what = "how often the encoder runs is not known"
            if self.passes is not None:
                what = "this encoder does not run on shapes without values"
            return f"not counted: {what}"
        return (
            f"about {_short(self.flops_per_image)}FLOP an image, {self.passes:.4g} times a forward "
            f"pass; {_short(self.flops)}FLOP in all"
        )


class Announce(pl.Callback):
    """Prints what a run will do before it starts, and writes it to a file.

    Args:
        path: JSON file to write; None writes none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See `Callback.setup`. The weights are not on their device yet."""
        if stage != "fit" or not isinstance(pl_module, Method):
            return
        # To count the steps, Lightning waits for all processes.
        summary = summarise(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        show_table(summary.table(), 100)
        if self.path:
            summary.save(self.path)


def summarise(trainer: pl.Trainer, method: Method) -> RunSummary:
    """What `trainer.fit` will do with this method; data must be set up.

    Args:
        trainer: with a `TrainingData` attached.
        method: still on the CPU.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    precision = str(trainer.precision)
    device = trainer.strategy.root_device.type
    forward = forward_cost(method.classifier, precision, device)
    text = text_cost(method, precision, device)
    parts = memory(method, data.batch_size, forward, text)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TrajectoryAverage):
            parts["average"] = callback.bytes(method)
    passes = method.passes() if math.isfinite(method.passes()) and text else None
    if passes and forward and text:
        passes += text.flops / forward.flops
    head, origin = method.classifier.head, HEAD_ORIGINS[method.classifier.head_from]
    trained = [p for p in method.parameters() if p.requires_grad]
    # A text tower that is tuned with its image tower is of the student.
    student = [*{id(p): p for p in (*method.classifier.parameters(), *trained)}.values()]
    apart = {id(p) for p in student}
    return RunSummary(
        method=type(method).__name__,
        model=method.classifier.name,
        head=f"{type(head).__name__}: {origin}",
        parameters=_numel(student),
        trainable=_numel(trained),
        teacher=_numel(p for p in method.parameters() if id(p) not in apart),
        classes=len(method.classifier.class_names),
        train_images=len(data.train_set),
        val_images=len(data.val_set),
        reading=data.reading,
        devices=trainer.world_size,
        batch_per_device=data.batch_size,
        accumulate=trainer.accumulate_grad_batches,
        epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
        steps=int(trainer.estimated_stepping_batches),
        precision=precision,
        why=getattr(trainer, "why", ""),
        passes=passes,
        flops_per_image=passes * forward.flops if forward and passes else None,
        memory=parts,
    )


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _short(number: float) -> str:
    """A number with three digits and its SI prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5 or prefix == "E":
            return f"{number:.3g} {prefix}"
        number /= 1000
    return ""
