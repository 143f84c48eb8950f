"""Photometric: brightness, contrast, saturation and hue changed at random."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmask.errors import InputError
from cfmask.processes import count, rank

# How far they go to either side at strength 1: factors around 1, and turns of the hue.
REACH = (0.8, 0.8, 0.8, 0.2)


class Photometric:
    """The colours of each image of a batch changed by amounts of its own, in this order.

    Args:
        strength: in units of SimCLR's (arXiv 2002.05709), in [0, 1]; 0 changes nothing.

    Raises:
        InputError: another strength.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise InputError(f"Expected photometric in [0, 1], but got {strength}.")
        self.strength = strength

    def amounts(self, images: int) -> Tensor:
        """Factors of brightness, contrast and saturation, and turn of the hue, float (B, 4).

        They are drawn on the CPU for the images of all devices, which take theirs, so that nothing
        waits for a device.
        """
        drawn = torch.rand(images * count(), 4)[rank() :: count()]
        return torch.tensor([1.0, 1.0, 1.0, 0.0]) + self.strength * (2 * drawn - 1) * torch.tensor(
            REACH
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of other colours, likewise."""
        if not self.strength:
            return images
        # torchvision takes a second to be imported.
        from torchvision.transforms.v2 import functional

        changed = []
        for image, (bright, contrast, colour, turn) in zip(
            images, self.amounts(len(images)).tolist()
        ):
            image = functional.adjust_brightness(image, bright)
            image = functional.adjust_contrast(image, contrast)
            image = functional.adjust_saturation(image, colour)
            changed.append(functional.adjust_hue(image, turn))
        return torch.stack(changed)
