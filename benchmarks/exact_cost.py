"""Exact cost: FLOPs and activations of a whole training step, operation by operation.

The summary of a run estimates the same from one forward pass (`cfmask.runs.cost`); the pages'
tables come from here.

One step of a large model is counted on fake tensors, which have shapes but no values, so that it
takes seconds and no memory. Two small steps of a small model are computed, which is faster still.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from cfmask import processes
from cfmask.attention import Attention, Given
from cfmask.classifier import Classifier
from cfmask.internals import fake_tensors
from cfmask.methods import MaskedDistillation, Method
from cfmask.runs.cost import memory

# Models with fewer parameters are computed.
SMALL = 2e7
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


def exact_memory(method: Method, batch_size: int, cost: StepCost) -> dict[str, int]:
    """Bytes that a training step needs on a device, by what they hold.

    Args:
        method: its weights as they are.
        batch_size: images on the device.
        cost: of a step with this batch size.
    """
    return {**memory(method, batch_size, None), "activations": cost.saved_bytes}


def step_cost(
    method: Method,
    batch_size: int,
    precision: str = "32-true",
    fused: bool = False,
    fake: bool | None = None,
) -> StepCost:
    """Count one forward and backward pass of a method.

    Where a transformer removes patches, they count as if they were there: an upper bound.

    Args:
        method: on the CPU; left as it was.
        batch_size: images of the step.
        precision: as Lightning names it; `bf16-mixed` and `16-mixed` count under autocast.
        fused: attention under autocast by a kernel that keeps no maps, as on GPUs; False for what
            the CPU does.
        fake: True takes fake tensors, where the shapes of the step do not depend on values; False
            computes steps of two and of four images and draws the line through them. None takes
            fake ones for all but small models, if they can be had.
    """
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    if fake is None:
        fake = sum(p.numel() for p in method.parameters()) >= SMALL
    with torch.random.fork_rng(devices=[]), _countable(method), processes.alone():
        if fake:
            # Fake tensors refuse what depends on values with errors of many kinds.
            with contextlib.suppress(Exception):
                return _count(method, batch_size, dtype, fused, fake=True)
        two, four = (_count(method, images, dtype, fused, fake=False) for images in (2, 4))
        image = (four.saved_bytes - two.saved_bytes) / 2
        return StepCost(two.flops, round(two.saved_bytes + image * (batch_size - 2)))


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


class _FusedAttention(Attention):
    """Attention by the fused kernel, whatever kernel this machine would choose."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        attended: Tensor = FLASH(query, key, value, 0.0, given.causal, attn_mask=given.mask)[0]
        return attended


def _count(
    method: Method, images: int, dtype: torch.dtype | None, fused: bool, fake: bool
) -> StepCost:
    mode: Any = fake_tensors() if fake else nullcontext()
    # The registry of torch leaves the CPU's attention out, and the groups of convolutions.
    own = {
        FLASH: _flash_flops,
        FLASH_BACKWARD: _flash_backward_flops,
        torch.ops.aten.convolution_backward: _convolution_backward_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=own)
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


def _convolution_backward_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **kwargs: Any,
) -> int:
    """Each gradient, of the input and of the weight, takes the products of the forward pass.

    Torch's formula for the weight's gradient multiplies all inputs by all outputs, whatever the
    groups: a depthwise convolution of C channels counts C times too much.
    """
    places = math.prod((x_shape if transposed else grad_shape)[2:]) * x_shape[0]
    return 2 * places * math.prod(w_shape) * sum(wanted[:2])


@contextlib.contextmanager
def _countable(method: Method) -> Iterator[None]:
    """Nothing is logged or kept as a gradient; no matrix product is hidden."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # Without gradients torch runs a whole attention as one operation, which nobody counts.
    torch.backends.mha.set_fastpath_enabled(False)
    trained = [p for p in method.parameters() if p.requires_grad]
    own = {name: vars(method)[name] for name in ("log", "backward_now") if name in vars(method)}

    def backward(loss: Tensor) -> Tensor:
        torch.autograd.grad(loss, trained, allow_unused=True)
        return loss.detach()

    method.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    method.backward_now = backward  # type: ignore[method-assign]
    whole = _excluding(method)
    for classifier in whole:
        classifier.features = partial(_features, classifier)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.log, method.backward_now
        vars(method).update(own)
        for classifier in whole:
            del classifier.features
        torch.backends.mha.set_fastpath_enabled(fast)


def _excluding(method: Method) -> list[Classifier]:
    """Classifiers that remove patches: how many, no fake tensor can tell.

    Transformers are counted as if all patches were there, which is the most that it can cost.
    """
    if not isinstance(method, MaskedDistillation) or method.classifier.tokens is None:
        return []
    removes = any(make.fill.removes for make in method.counterfactuals)
    return [method.classifier, method.teacher] if removes else []


def _features(
    classifier: Classifier, images: Tensor, hidden: Any = None, visible: Any = None
) -> Tensor:
    return type(classifier).features(classifier, images)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
