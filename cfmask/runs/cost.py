"""Cost: what a training step takes, estimated from one forward pass of the encoder.

The pass is made by a copy of the classifier whose tensors have shapes but no values, so that it
takes no memory, and nothing of what will be trained takes part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmask.attention import Attention, Given
from cfmask.classifier import Classifier
from cfmask.internals import fake_tensors, internal
from cfmask.methods import Method


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
    try:
        with isolate_rng():
            one, two = (_count(classifier, images, precision, device) for images in (1, 2))
    # No count may stop a run: what is wrong with the encoder itself shows in its first step.
    except Exception:
        return None
    return ForwardCost(two.flops - one.flops, two.kept_bytes - one.kept_bytes)


def memory(method: Method, images: int, forward: ForwardCost | None) -> dict[str, int]:
    """Estimated bytes that a training step needs on a device, by what they hold.

    Left out: the driver's own, fragments, and what a layer, or a block that is computed again,
    needs for a moment.

    Args:
        method: its weights as they are.
        images: on the device at a time.
        forward: cost of its classifier's forward pass; without it the activations are left out.
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
        parts["activations"] = round(images * method.graphs() * forward.kept_bytes)
    return parts


def _count(classifier: Classifier, images: int, precision: str, kind: str) -> ForwardCost:
    fake = fake_tensors()
    tensors = [*classifier.parameters(), *classifier.buffers()]
    twin = copy.deepcopy(classifier, {id(x): fake.from_tensor(x) for x in tensors}).eval()
    # Compiled in an earlier run; what is compiled takes no tensors without values.
    vars(twin).pop("encode", None)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0])
    reduced = torch.autocast(twin.mean.device.type, dtype, enabled=dtype is not None)
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    counter = FlopCounterMode(display=False)
    with fake, reduced, torch.enable_grad():
        batch = torch.empty(images, 3, *twin.image_size, device=twin.mean.device)
        # As one operation, attention would not be counted on the CPU.
        with sdpa_kernel(SDPBackend.MATH), counter:
            twin(batch)
        with nullcontext() if kind == "cpu" else _Fused(), saved:
            twin(batch)
    return ForwardCost(counter.get_total_flops(), sum(x.nbytes() for x in kept.values()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
