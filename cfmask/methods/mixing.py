"""Mixing: mixup and cutmix of a batch, torchvision's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfmask.errors import InputError


class Mixing:
    """Images and labels of a batch, each mixed with those of another image.

    It draws from torch's generator. Where both are wanted, each batch is mixed by one of them.

    Args:
        mixup: alpha of mixup (arXiv 1710.09412), which blends whole images; 0 for none.
        cutmix: alpha of cutmix (arXiv 1905.04899), which pastes a rectangle; 0 for none.
        classes: number K.

    Raises:
        InputError: a negative alpha.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        if not (mixup >= 0 and cutmix >= 0):
            raise InputError(
                f"Expected mixup and cutmix of at least 0, but got {mixup} and {cutmix}."
            )
        self.kinds: list[Any] = []
        if mixup or cutmix:
            # torchvision takes a second to be imported.
            from torchvision.transforms import v2

            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)):
                self.kinds += [kind(alpha=alpha, num_classes=classes)] if alpha else []

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and float labels (B, K); without a kind, what came.

        Args:
            images: float (B, 3, H, W).
            labels: int64 (B,).
        """
        if not self.kinds:
            return images, labels
        chosen = int(torch.rand(()) * len(self.kinds)) if len(self.kinds) > 1 else 0
        mixed: tuple[Tensor, Tensor] = self.kinds[chosen](images, labels)
        return mixed
