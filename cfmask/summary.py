"""Summary: what a training run will do, said before it starts.

One step is counted on fake tensors, which have shapes but no values, so that even a large model
takes a second and no memory.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from cfmask.attention import AttentionMaps
from cfmask.errors import InputError
from cfmask.methods.base import Method

SUMMARY = "summary.json"
# Batch for models whose step depends on values: few images, because they are computed for real.
REAL_IMAGES = 2
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class StepCost:
    """What one forward and backward pass costs.

    Attributes:
        flops: of one image, a multiply-add as two.
        saved_bytes: most bytes that autograd keeps at a time for the whole batch, weights left out.
    """

    flops: float
    saved_bytes: int


@dataclass(frozen=True)
class RunSummary:
    """What a training run will do.

    Attributes:
        method: name of the method's class.
        model: name of the encoder.
        parameters: of the student.
        trainable: those of them that are trained.
        teacher: parameters of frozen copies.
        classes: K.
        train_images: images an epoch.
        val_images: images of each validation.
        devices: processes that share a batch.
        batch_per_device: images of a forward pass.
        accumulate: forward passes of an optimiser step.
        epochs: planned; None if only the steps are limited.
        steps: optimiser steps in all.
        precision: as Lightning names it.
        flops_per_image: of a training step, a multiply-add as two.
        memory: estimated bytes on a device, by what they hold.
    """

    method: str
    model: str
    parameters: int
    trainable: int
    teacher: int
    classes: int
    train_images: int
    val_images: int
    devices: int
    batch_per_device: int
    accumulate: int
    epochs: int | None
    steps: int
    precision: str
    flops_per_image: float
    memory: dict[str, int]

    @property
    def batch(self) -> int:
        """Images of an optimiser step, over all devices."""
        return self.batch_per_device * self.devices * self.accumulate

    @property
    def flops(self) -> float:
        """Of the whole training, validation left out."""
        return self.flops_per_image * self.batch * self.steps

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of a device in all."""
        return sum(self.memory.values())

    def save(self, path: Path) -> None:
        """Write as JSON."""
        totals = {name: getattr(self, name) for name in ("batch", "flops", "memory_bytes")}
        path.write_text(json.dumps({**asdict(self), **totals}, indent=1) + "\n")

    def table(self) -> Table:
        """The same for the terminal."""
        epochs = f" ({self.epochs} epochs)" if self.epochs else ""
        parts = ", ".join(f"{name} {_short(size)}B" for name, size in self.memory.items() if size)
        rows = {
            "method": f"{self.method} of {self.model}, {self.classes} classes",
            "parameters": f"{_short(self.parameters)}, {_short(self.trainable)} trainable"
            + (f"; frozen teacher {_short(self.teacher)}" if self.teacher else ""),
            "images": f"{self.train_images:,} to train on, {self.val_images:,} to choose the epoch",
            "batch": f"{self.batch_per_device} a device x {self.devices} devices x "
            f"{self.accumulate} accumulated = {self.batch}",
            "steps": f"{self.steps:,}{epochs}",
            "cost": f"{_short(self.flops_per_image)}FLOP an image, {_short(self.flops)}FLOP in all",
            "memory": f"about {_short(self.memory_bytes)}B a device in {self.precision}: {parts}",
        }
        table = Table(title="This run", show_header=False)
        for name, text in rows.items():
            table.add_row(name, text)
        return table


class Announce(pl.Callback):
    """Prints what a run will do before it starts, and writes it to a file.

    Args:
        path: JSON file to write; None writes none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    @rank_zero_only
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See `Callback.setup`. The weights are not on their device yet."""
        if stage != "fit" or not isinstance(pl_module, Method):
            return
        summary = summarise(trainer, pl_module)
        Console(width=100).print(summary.table())
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
    on_cpu = trainer.strategy.root_device.type == "cpu"
    cost = step_cost(method, data.batch_size, precision, fused=not on_cpu)
    student = list(method.classifier.parameters())
    apart = {id(p) for p in student}
    return RunSummary(
        method=type(method).__name__,
        model=method.classifier.name,
        parameters=_numel(student),
        trainable=_numel(p for p in student if p.requires_grad),
        teacher=_numel(p for p in method.parameters() if id(p) not in apart),
        classes=len(method.classifier.class_names),
        train_images=len(data.train_set),
        val_images=len(data.val_set),
        devices=trainer.world_size,
        batch_per_device=data.batch_size,
        accumulate=trainer.accumulate_grad_batches,
        epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
        steps=int(trainer.estimated_stepping_batches),
        precision=precision,
        flops_per_image=cost.flops,
        memory=memory(method, data.batch_size, cost),
    )


def memory(method: Method, batch_size: int, cost: StepCost) -> dict[str, int]:
    """Estimated bytes that a training step needs on a device, by what they hold.

    Left out: the driver's own, fragments, and what a single layer needs for a moment.

    Args:
        method: its weights as they are.
        batch_size: images on the device.
        cost: of a step with this batch size.
    """
    trained = _bytes(p for p in method.parameters() if p.requires_grad)
    height, width = method.classifier.image_size
    return {
        "weights": _bytes([*method.parameters(), *method.buffers()]),
        "gradients": trained,
        "AdamW": 2 * trained,
        "activations": cost.saved_bytes,
        "images": 4 * batch_size * 3 * height * width,
    }


def step_cost(
    method: Method, batch_size: int, precision: str = "32-true", fused: bool = False
) -> StepCost:
    """Count one step of a method. Nothing is computed, unless the step depends on values.

    A step whose shapes depend on values, as with patches that the encoder removes, is computed for
    real on two images, which takes longer.

    Args:
        method: on the CPU; left as it was.
        batch_size: images of the step.
        precision: as Lightning names it; `bf16-mixed` and `16-mixed` count under autocast.
        fused: attention under autocast by a kernel that keeps no maps, as on GPUs; False for what
            the CPU does.
    """
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = kinds.get(precision)
    with torch.random.fork_rng(devices=[]), _countable(method):
        try:
            return _count(method, batch_size, dtype, fused, fake=True)
        except InputError:
            raise
        # Fake tensors refuse what depends on values with errors of many kinds.
        except Exception:
            few = min(REAL_IMAGES, batch_size)
            cost = _count(method, few, dtype, fused, fake=False)
            return StepCost(cost.flops, ceil(cost.saved_bytes * batch_size / few))


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Context that counts the bytes that autograd keeps for backward passes.

    A storage counts once, however often it is saved, and as long as a graph holds it.

    Args:
        apart: tensors whose storage does not count, as weights.

    Attributes:
        live: bytes kept now.
        peak: most bytes kept at a time.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        self.live = 0
        self.peak = 0
        self._apart = {_storage(tensor) for tensor in apart}
        self._holders: Counter[int] = Counter()
        super().__init__(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)

    def __enter__(self) -> SavedBytes:  # type: ignore[override]
        super().__enter__()
        return self

    def change(self, tensor: Tensor, by: int) -> None:
        """One more graph (`by` = 1) or one less (-1) holds this tensor."""
        key = _storage(tensor)
        if key in self._apart:
            return
        before = self._holders[key] > 0
        self._holders[key] += by
        self.live += (int(self._holders[key] > 0) - int(before)) * tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, self.live)


class _Kept:
    """A saved tensor that tells when its graph lets it go."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self.counter = counter
        self.tensor = tensor
        counter.change(tensor, 1)

    def __del__(self) -> None:
        self.counter.change(self.tensor, -1)


class _FusedAttention(AttentionMaps):
    """Attention by the fused kernel, whatever kernel this machine would choose."""

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if any(x is not None for x in (*args[:1], kwargs.get("attn_mask"))):
            return super()._attend(query, key, value, *args, **kwargs)
        attended: Tensor = FLASH(query, key, value)[0]
        return attended


def _count(
    method: Method, images: int, dtype: torch.dtype | None, fused: bool, fake: bool
) -> StepCost:
    from torch._subclasses import FakeTensorMode

    mode: Any = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    # The registry of torch leaves the CPU's kernel out.
    counter = FlopCounterMode(
        display=False,
        custom_mapping={FLASH: _flash_flops, FLASH_BACKWARD: _flash_backward_flops},
    )
    weights = [*method.parameters(), *method.buffers()]
    if fake:
        weights = [mode.from_tensor(tensor) for tensor in weights]
    attention: AbstractContextManager[Any] = nullcontext()
    if fused and dtype is not None:
        attention = _FusedAttention()
    saved = SavedBytes(weights)
    with mode, counter, saved, attention:
        _step(method, images, dtype)
    return StepCost(counter.get_total_flops() / images, saved.peak)


def _step(method: Method, count: int, dtype: torch.dtype | None) -> None:
    """Forward and backward of one step, without the optimiser."""
    images = torch.rand(count, 3, *method.classifier.image_size)
    labels = torch.zeros(count, dtype=torch.long)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = torch.stack(list(method.losses(images, labels).values())).sum()
    method.backward_now(loss)


def _flash_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _flash_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


@contextlib.contextmanager
def _countable(method: Method) -> Iterator[None]:
    """Nothing is logged or kept as a gradient; no matrix product is hidden."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # Without gradients torch runs a whole attention as one operation, which nobody counts.
    torch.backends.mha.set_fastpath_enabled(False)
    trained = [p for p in method.parameters() if p.requires_grad]

    def backward(loss: Tensor) -> Tensor:
        torch.autograd.grad(loss, trained, allow_unused=True)
        return loss.detach()

    method.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    method.backward_now = backward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.log, method.backward_now
        torch.backends.mha.set_fastpath_enabled(fast)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _short(number: float) -> str:
    """A number with three digits and its SI prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5 or prefix == "E":
            return f"{number:.3g} {prefix}"
        number /= 1000
    return ""
