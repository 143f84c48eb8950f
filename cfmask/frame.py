"""Frame: the crop of a preprocessing together with the pixels around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.decoding import Picture
from cfmask.errors import InputError
from cfmask.images import Preprocess, centre

# Share of the short side that the crop keeps where a preprocessing keeps all of it.
ENLARGED = 224 / 256


@dataclass(frozen=True)
class Frame(Preprocess):
    """The crop of a preprocessing and `margin` pixels around it, uint8 (3, H + 2m, W + 2m).

    It is cut from the resized picture, so that its middle is the crop itself. Where the crop of
    `base` keeps the whole short side, the picture is resized to 256/224 of that size before it is
    cut: its middle is then another image than the crop, which `beside` puts to the right of it.

    Attributes:
        base: the preprocessing, of (H, W) pixels.
        margin: in pixels.
        beside: True makes images (3, H + 2m, 2 (W + 2m)), with the crop of `base` at the right,
            black around it.
    """

    base: Preprocess = field(default_factory=Preprocess)
    margin: int = 0
    beside: bool = False

    @classmethod
    def around(cls, look: Preprocess, margin: int, beside: bool = False) -> Frame:
        """The frame of so many more pixels around what a preprocessing makes.

        Args:
            look: a preprocessing, or a frame without anything beside it.
            margin: in pixels, at least 1.
            beside: keep the crop of `look` where it is not the middle of the frame.

        Raises:
            InputError: the resized picture leaves fewer pixels.
        """
        base, inner = (look.base, look.margin) if isinstance(look, Frame) else (look, 0)
        if margin > room(look):
            resized = ", once it is resized to 256/224 of that size," if enlarged(base) else ""
            raise InputError(
                f"Expected at most {room(look)} pixels, which the picture{resized} leaves on every "
                f"side of a crop of {look.size[1]} x {look.size[0]}, but got {margin}; give fewer."
            )
        m, pair = inner + margin, beside and enlarged(base) and look is base
        size = base.size[0] + 2 * m, (1 + pair) * (base.size[1] + 2 * m)
        return cls(size, 1.0, base.interpolation, base.decoder, base, m, pair)

    def __call__(self, picture: Picture) -> Tensor:
        """See `Preprocess`."""
        around = self._resized.window(picture, self.margin)
        own = replace(self.base, decoder=self.decoder)(picture) if self.beside else None
        return self._with(around, own)

    def of_square(self, resized: Callable[[tuple[int, int]], Tensor]) -> Tensor:
        """Frames of images that are no pictures to be cropped, such as drawn ones.

        Args:
            resized: (H', W') -> all images uint8 (N, 3, H', W') of that size.
        """
        height, width = (int(side / self._resized.crop_pct) for side in self.base.size)
        around = centre(resized((height, width)), *self.base.size, self.margin)
        return self._with(around, resized(self.base.size) if self.beside else None)

    def _with(self, around: Tensor, own: Tensor | None) -> Tensor:
        m = self.margin
        return around if own is None else torch.cat([around, F.pad(own, (m, m, m, m))], -1)

    def spec(self) -> dict[str, Any]:
        """That of the base, with the pixels around its crop."""
        return {**self._resized.spec(), "margin": self.margin}

    def misfit(self, sides: tuple[int, int]) -> str:
        """See `Preprocess`."""
        return self.base.misfit(sides) or self._resized.misfit(sides)

    @property
    def _resized(self) -> Preprocess:
        """What resizes the picture before the frame is cut."""
        share = ENLARGED if enlarged(self.base) else self.base.crop_pct
        return replace(self.base, crop_pct=share, decoder=self.decoder)


def enlarged(base: Preprocess) -> bool:
    """Whether a crop leaves less than a pixel around it, so that pictures are resized larger."""
    return _room(base, base.crop_pct) < 1


def room(look: Preprocess) -> int:
    """Pixels that a resized picture of any shape has on every side of what is cut from it."""
    base, inner = (look.base, look.margin) if isinstance(look, Frame) else (look, 0)
    return _room(base, ENLARGED if enlarged(base) else base.crop_pct) - inner


def _room(base: Preprocess, share: float) -> int:
    return min((int(side / share) - side) // 2 for side in base.size)


def part(images: Tensor, look: Preprocess, margin: int) -> Tensor:
    """What lies in the middle of frames, with a margin.

    Args:
        images: (B, 3, H', W') as `look` makes them.
        look: a frame.
        margin: of the part, in pixels, at most that of the frame.
    """
    assert isinstance(look, Frame)
    cut, (height, width) = look.margin - margin, look.base.size
    rows = slice(cut, cut + height + 2 * margin)
    return images[..., rows, cut : cut + width + 2 * margin]


def plain(images: Tensor, look: Preprocess, of: Preprocess) -> Tensor:
    """The images (B, 3, H, W) that a preprocessing makes, out of what `look` makes.

    Args:
        images: (B, 3, H', W') as `look` makes them.
        look: `of` itself, or a frame around it.
        of: the preprocessing.
    """
    if not isinstance(look, Frame) or look.size == of.size:
        return images
    if look.beside:
        images = images[..., images.shape[-1] // 2 :]
    return part(images, look, of.margin if isinstance(of, Frame) else 0)
