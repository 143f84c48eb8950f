"""Rates: learning rates of the layers of an encoder and of the head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from cfmask.classifier import Classifier
from cfmask.errors import InputError

# Layers of open_clip's towers, in the manner of timm's `group_matcher`.
CLIP = {
    "stem": r"^(?:conv|bn|class_embedding|positional_embedding|ln_pre)",
    "blocks": [
        (r"^transformer\.resblocks\.(\d+)", None),
        (r"^layer(\d+)\.(\d+)", None),
        (r"^(?:ln_post|attnpool|proj)", (99999,)),
    ],
}


@dataclass(frozen=True)
class Rates:
    """Peak learning rates.

    Attributes:
        lr: of the last layer of the encoder, and of all that is not the encoder.
        layer_decay: rate of a layer in units of that of the next one, in (0, 1].
        head_lr: of what is not the encoder; None for `lr`.

    Raises:
        InputError: values outside of these.
    """

    lr: float
    layer_decay: float = 1.0
    head_lr: float | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"Expected a learning rate above 0, but got {self.lr}.")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"Expected layer_decay in (0, 1], but got {self.layer_decay}.")
        if self.head_lr is not None and self.head_lr <= 0:
            raise InputError(f"Expected head_lr above 0, but got {self.head_lr}.")

    def groups(self, method: nn.Module, classifier: Classifier) -> list[dict[str, Any]]:
        """Trained parameters of a method for an optimiser, and the rate of each group.

        Args:
            method: what is trained.
            classifier: in it.

        Raises:
            InputError: an encoder whose layers are not known.
        """
        trained = [p for p in method.parameters() if p.requires_grad]
        if self.layer_decay == 1 and self.head_lr is None:
            return [{"params": trained, "lr": self.lr}]
        encoder, decay = classifier.encoder, self.layer_decay
        scales = layer_scales(encoder, decay) if decay < 1 else {}
        named = {id(p): name for name, p in encoder.named_parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in trained:
            name = named.get(id(parameter))
            rate = self.lr * scales.get(name, 1) if name else self.head_lr or self.lr
            groups.setdefault(rate, []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def layer_scales(encoder: nn.Module, decay: float) -> dict[str, float]:
    """Learning rate of every parameter of an encoder in units of that of its last layer.

    Args:
        encoder: of timm, which tells its layers, or of open_clip.
        decay: rate of a layer in units of that of the next one, in (0, 1].

    Raises:
        InputError: its layers are not known.
    """
    layers = _layers(encoder, "layer_decay")
    top = max(layers.values())
    return {name: decay ** (top - layer) for name, layer in layers.items()}


def of_upper(names: Iterable[str], encoder: nn.Module, upper: int | None) -> list[str]:
    """Those of some parameters that belong to an encoder's last blocks or to what follows them.

    Args:
        names: of parameters.
        encoder: of timm, which tells its layers, or of open_clip.
        upper: number of blocks, at least 1; None keeps all names, for any encoder.

    Raises:
        InputError: another number of blocks, or layers that are not known.
    """
    if upper is None:
        return [*names]
    layers = _layers(encoder, "upper_blocks")
    top = max(layers.values())
    if not 1 <= upper <= top:
        raise InputError(
            f"Expected upper_blocks from 1 to {top}, the blocks of this encoder, but got {upper}."
        )
    return [name for name in names if layers[name] > top - upper]


def _layers(encoder: nn.Module, what: str) -> dict[str, int]:
    """Number of the layer of each parameter: 0 for the stem, then block by block.

    What follows the last block counts to it.
    """
    from timm.models import group_parameters

    told: Any = getattr(encoder, "group_matcher", None)
    layers = group_parameters(encoder, told(coarse=False) if told else CLIP, reverse=True)
    if max(layers.values()) == 0:
        raise InputError(
            f"Expected an encoder of timm or open_clip for {what}, but the layers of "
            f"{type(encoder).__name__} are not known; leave it out."
        )
    return dict(layers)
