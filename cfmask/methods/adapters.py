"""Adapters: what is trained beside a frozen encoder, and folded into its weights at the end.

Letters: B rows (images, or parts of images where a layer takes those), D outputs of a layer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.averages import move
from cfmask.methods.rates import of_upper

Layer = nn.Linear | nn.Conv2d
# Where a checkpoint has the classifier, and what is trained beside it.
CLASSIFIER, ADAPTERS = "classifier.", "adapters."


class Change(nn.Module):
    """The linear change z -> scale · z F of outputs (..., D), zero at first.

    Args:
        width: D.
        rank: of F, the product of D x rank and rank x D; None for any.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        narrow = [torch.randn(width, rank) / math.sqrt(width)] if rank else []
        last = torch.zeros(rank or width, width)
        self.factors = nn.ParameterList([*narrow, last])

    def forward(self, values: Tensor) -> Tensor:
        """Of outputs (..., D)."""
        for factor in self.factors:
            values = values @ factor
        return self.scale * values


class Adapted(nn.Module):
    """A frozen layer and the change of its outputs.

    In training rows go without the change at random; in eval mode it is the running average of all
    changes so far, times a factor, and `folded` gives a layer of the same outputs.

    Args:
        layer: linear, or a convolution.
        rank: see `Change`.
        drop: share of the rows that go without, in [0, 1).
        rescale: factor in eval mode.
    """

    def __init__(self, layer: Layer, rank: int | None, drop: float, rescale: float) -> None:
        super().__init__()
        self.layer, self.drop, self.rescale = layer, drop, rescale
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        self.change = Change(width, rank).to(layer.weight)
        self.average = copy.deepcopy(self.change).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the layer, changed."""
        z: Tensor = self.layer(x)
        channels = 1 if isinstance(self.layer, nn.Conv2d) else -1
        rows = z.movedim(channels, -1)
        if not self.training:
            change = self.rescale * self.average(rows)
        else:
            change = self.change(rows)
            if self.drop:
                kept = z.new_empty(len(z), *[1] * (z.ndim - 1)).bernoulli_(1 - self.drop)
                change = change * (kept / (1 - self.drop))
        changed: Tensor = z + change.movedim(-1, channels)
        return changed

    def folded(self) -> dict[str, Tensor]:
        """Weight of a layer that gives these outputs in eval mode, and its bias if it has one."""
        weight, bias = self.layer.weight, self.layer.bias
        with torch.no_grad():
            unit = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
            matrix = unit + self.rescale * self.average(unit)
            found = {"weight": (matrix.T @ weight.flatten(1)).view_as(weight)}
            return found if bias is None else {**found, "bias": bias @ matrix}


def adapt(
    classifier: Classifier,
    rank: int | None,
    drop: float,
    rescale: float,
    upper_blocks: int | None = None,
) -> tuple[dict[str, Adapted], float]:
    """Freeze a classifier and give its encoder adapters, in place.

    Each linear layer and each convolution of one group gets one that does not widen and that
    a forward pass of the encoder calls as a module: in a block of a ViT the last of its attention
    and the last of its MLP.

    Args:
        classifier: changed in place.
        rank: see `Change`.
        drop: see `Adapted`.
        rescale: see `Adapted`.
        upper_blocks: number of the last blocks that get adapters; None for all.

    Returns:
        What has been put in the places of layers, by their names, and how much a step costs in
        units of its forward pass.

    Raises:
        InputError: there is no such layer.
    """
    layers: Any = classifier.encoder.get_submodule
    weights = [f"{name}.weight" for name in _called(classifier)]
    kept = of_upper(weights, classifier.encoder, upper_blocks)
    names = [name.removesuffix(".weight") for name in kept]
    classifier.requires_grad_(False)
    if not names:
        raise InputError(
            "Expected an encoder with linear layers or convolutions that do not widen for "
            f"adapters, but {classifier.name} has none."
        )
    made: dict[str, Adapted] = {}
    for name in names:
        made[name] = Adapted(layers(name), rank, drop, rescale)
        _put(classifier.encoder, name, made[name])
    return made, _passes(classifier, list(made.values()))


def taken_out(classifier: Classifier) -> Classifier:
    """A copy with plain layers in the place of adapted ones, of the same outputs in eval mode."""
    plain = copy.deepcopy(classifier)
    adapted = [(n, m) for n, m in plain.encoder.named_modules() if isinstance(m, Adapted)]
    for name, one in adapted:
        one.layer.load_state_dict(one.folded())
        _put(plain.encoder, name, one.layer)
    return plain


def checkpointed(
    state: Mapping[str, Any], tuned: Mapping[str, Tensor], own: Collection[str]
) -> dict[str, Any]:
    """State of a method: the classifier as it will be, and what is trained beside it.

    Args:
        state: of the method with its adapters.
        tuned: see `Method.tuned`.
        own: names of what is trained beside the classifier.
    """
    rest = {k: v for k, v in state.items() if not k.startswith(CLASSIFIER)}
    beside = {ADAPTERS + k: state[k] for k in own}
    return {**rest, **{CLASSIFIER + k: v for k, v in tuned.items()}, **beside}


def loaded(state: Mapping[str, Any]) -> dict[str, Any]:
    """What `checkpointed` gave, by the names of the method with its adapters."""
    return {k.removeprefix(ADAPTERS): v for k, v in state.items()}


def follow(adapted: Adapted, share: float) -> None:
    """Move the average of an adapter's changes towards the present one."""
    move(adapted.average.parameters(), adapted.change.parameters(), share)


def _called(classifier: Classifier) -> list[str]:
    """Names of the layers that can be adapted."""
    found: dict[str, None] = {}
    handles = [
        layer.register_forward_hook(lambda *_, name=name: found.setdefault(name))
        for name, layer in classifier.encoder.named_modules()
        if _fits(layer)
    ]
    try:
        with torch.no_grad():
            _blank(classifier)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def _fits(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.out_features <= layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.out_channels <= layer.in_channels
    return False


def _passes(classifier: Classifier, adapted: list[Adapted]) -> float:
    """Multiplications of a step in units of those of its forward pass."""
    # As one operation, attention would not be counted on the CPU.
    with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for one in adapted:
            one.train()
        with FlopCounterMode(display=False) as counter:
            logits = _blank(classifier)
            forward: int = counter.get_total_flops()
            logits.sum().backward()
        for one in adapted:
            one.train(classifier.training)
            one.zero_grad()
    both: int = counter.get_total_flops()
    return both / forward


def _blank(classifier: Classifier) -> Tensor:
    """Logits (1, K) of an image without content."""
    logits: Tensor = classifier(classifier.mean.new_zeros(1, 3, *classifier.image_size))
    return logits


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, layer)
