"""Cost: FLOPs and memory of a training step, estimated from a forward pass of the encoder.

The pass is made by a copy of the classifier whose tensors have shapes but no values, so that it
takes no memory, and nothing of what will be trained takes part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmask.attention import Attention, Given
from cfmask.classifier import Classifier
from cfmask.internals import fake_tensors, internal
from cfmask.methods import Method
from cfmask.methods.towers import TextMethod


@dataclass(frozen=True)
class ForwardCost:
    """What one more image costs in a forward pass.

    Attributes:
        flops: a multiply-add as two.
        kept_bytes: what autograd keeps of it for the backward pass.
    """

    flops: int
    kept_bytes: int


class _Fused(Attention):
    """Attention by a kernel that keeps no map, as GPUs have."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        kernel = internal("flash_on_cpu")
        output: Tensor = kernel(query, key, value, 0.0, given.causal, attn_mask=given.mask)[0]
        return output


def forward_cost(
    classifier: Classifier, precision: str = "32-true", device: str = "cpu"
) -> ForwardCost | None:
    """Count a forward pass in eval mode; None for an encoder that runs on values alone.

    Args:
        classifier: left as it is, on the CPU.
        precision: as Lightning names it.
        device: type of the device that will run it.
    """
    size = classifier.image_size

    def images(count: int) -> Tensor:
        return torch.empty(count, 3, *size, device=classifier.mean.device)

    return _of_one_more(classifier, images, precision, device)


def text_cost(
    method: Method, precision: str = "32-true", device: str = "cpu"
) -> ForwardCost | None:
    """What a step costs an image beside the passes of its encoder: those of text towers.

    All of them are counted together, captions as long as the longest; None where one runs on values
    alone.

    Args:
        method: its weights on the CPU.
        precision: as Lightning names it.
        device: type of the device that will run it.
    """
    flops, kept = 0.0, 0.0
    for one in method.text_passes() if isinstance(method, TextMethod) else []:
        captions = partial(_captions, one.length)
        cost = _of_one_more(one.text, captions, precision, device)
        if cost is None:
            return None
        flops, kept = flops + one.passes * cost.flops, kept + one.graphs * cost.kept_bytes
    return ForwardCost(round(flops), round(kept))


def memory(
    method: Method, images: int, forward: ForwardCost | None, text: ForwardCost | None = None
) -> dict[str, int]:
    """Estimated bytes that a training step needs on a device, by what they hold.

    Left out: the driver's own, fragments, and what a layer, or a block that is computed again,
    needs for a moment.

    Args:
        method: its weights as they are.
        images: on the device at a time.
        forward: cost of its classifier's forward pass; without it the activations are left out.
        text: what text towers add; see `text_cost`.
    """
    trained = _bytes(p for p in method.parameters() if p.requires_grad)
    height, width = method.classifier.image_size
    parts = {
        "weights": _bytes([*method.parameters(), *method.buffers()]),
        "gradients": trained,
        "AdamW": 2 * trained,
        "images": 4 * images * 3 * height * width,
    }
    if forward:
        kept = method.graphs() * forward.kept_bytes + (text.kept_bytes if text else 0)
        parts["activations"] = round(images * kept)
    return parts


def _of_one_more(
    network: nn.Module, batch: Callable[[int], Tensor], precision: str, device: str
) -> ForwardCost | None:
    """What two inputs cost more than one; `batch` makes so many."""
    try:
        with isolate_rng():
            one, two = (_count(network, partial(batch, n), precision, device) for n in (1, 2))
    # No count may stop a run: what is wrong with the encoder itself shows in its first step.
    except Exception:
        return None
    return ForwardCost(two.flops - one.flops, two.kept_bytes - one.kept_bytes)


def _captions(length: int, count: int) -> Tensor:
    return torch.zeros(count, length, dtype=torch.int64)


def _count(
    network: nn.Module, batch: Callable[[], Tensor], precision: str, kind: str
) -> ForwardCost:
    fake = fake_tensors()
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(x): fake.from_tensor(x) for x in tensors})
    for module in twin.modules():
        # As in training; see `Method.train`.
        module.training = not isinstance(module, internal("batch_norm"))
    # Compiled in an earlier run; what is compiled takes no tensors without values.
    vars(twin).pop("encode", None)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0])
    reduced = torch.autocast(tensors[0].device.type, dtype, enabled=dtype is not None)
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    counter = FlopCounterMode(display=False)
    with fake, reduced, torch.enable_grad():
        given = batch()
        # As one operation, attention would not be counted on the CPU.
        with sdpa_kernel(SDPBackend.MATH), counter:
            twin(given)
        with nullcontext() if kind == "cpu" else _Fused(), saved:
            twin(given)
    return ForwardCost(counter.get_total_flops(), sum(x.nbytes() for x in kept.values()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
