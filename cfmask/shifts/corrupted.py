"""Corruptions of any set, made while it is read: five severities, by torch and torchvision alone.

They are of this package's own making and not ImageNet-C's, with which they share most names and
strengths. A blur's width is a share of an image's short side, so that it means the same at any
size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cfmask.errors import InputError, unknown
from cfmask.shift import Ladder, Request, Shift, qualified
from cfmask.shifts.combinations import SEVERITIES

FAMILY, ALL = "corrupted", "all"
# Image float (3, H, W) in [0, 1], strength, generator -> float (3, H, W).
Corrupt = Callable[[Tensor, float, torch.Generator], Tensor]


def _gaussian(image: Tensor, sd: float, rng: torch.Generator) -> Tensor:
    return image + sd * torch.randn(image.shape, generator=rng)


def _shot(image: Tensor, photons: float, rng: torch.Generator) -> Tensor:
    return torch.poisson(image * photons, generator=rng) / photons


def _impulse(image: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """The pixels of a smaller share are among those of a larger one."""
    drawn, white = torch.rand(2, *image.shape, generator=rng)
    return torch.where(drawn < share, (white < 0.5).float(), image)


def _blur(image: Tensor, sd: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    own = sd * min(image.shape[1:])
    # Torchvision reflects the image at its edges, so the window must not be wider than it.
    reach = min(max(1, round(4 * own)), min(image.shape[1:]) - 1)
    blurred: Tensor = gaussian_blur(image, [2 * reach + 1] * 2, [own] * 2)
    return blurred


def _brightness(image: Tensor, factor: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import adjust_brightness

    made: Tensor = adjust_brightness(image, factor)
    return made


def _contrast(image: Tensor, factor: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import adjust_contrast

    made: Tensor = adjust_contrast(image, factor)
    return made


def _pixelate(image: Tensor, share: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    small = [max(1, round(share * side)) for side in image.shape[1:]]
    less = functional.resize(image, small, InterpolationMode.BILINEAR, antialias=True)
    made: Tensor = functional.resize(less, list(image.shape[1:]), InterpolationMode.NEAREST_EXACT)
    return made


def _jpeg(image: Tensor, quality: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import jpeg

    made: Tensor = jpeg((255 * image).round().byte(), int(quality)).float() / 255
    return made


# Strengths at severities 1 to 5, and what takes them.
CORRUPTIONS: Mapping[str, tuple[tuple[float, ...], Corrupt]] = {
    "gaussian_noise": ((0.08, 0.12, 0.18, 0.26, 0.38), _gaussian),
    "shot_noise": ((60, 25, 12, 5, 3), _shot),
    "impulse_noise": ((0.03, 0.06, 0.09, 0.17, 0.27), _impulse),
    "gaussian_blur": ((0.01, 0.015, 0.02, 0.03, 0.04), _blur),
    "brightness": ((1.25, 1.5, 1.75, 2, 2.5), _brightness),
    "darkness": ((0.8, 0.6, 0.45, 0.3, 0.2), _brightness),
    "contrast": ((0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "pixelate": ((0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
    "jpeg_compression": ((25, 18, 15, 10, 7), _jpeg),
}


def corrupted_shifts(known: Sequence[Shift], request: Request) -> list[Shift]:
    """Sets, then the first one in distribution at five severities of each of `request.corrupt`.

    The sets of one corruption are the steps of a `Ladder`, whose scale 0 is the set itself.

    Raises:
        InputError: no set in distribution, or an unknown corruption.
    """
    asked = (CORRUPTIONS if name == ALL else (name,) for name in request.corrupt)
    names = list(dict.fromkeys(name for several in asked for name in several))
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, [*CORRUPTIONS, ALL])
    base = next((shift for shift in known if shift.in_distribution), None)
    if names and base is None:
        raise InputError(
            f"Expected a set in distribution to corrupt by {names[0]}, but got none; add one, such "
            "as digits/id, imagenet/val or a folder id, test or val."
        )
    # Drawn or listed once for all severities of a model's preprocessing.
    load = lru_cache(maxsize=1)(base.load) if base else None
    return [*known, *(_one(base, load, name, s) for name in names for s in SEVERITIES if base)]


def _one(base: Shift, load: Any, name: str, severity: int) -> Shift:
    strength = CORRUPTIONS[name][0][severity - 1]
    note = f"{base.name} with {name} of strength {strength:g}, not ImageNet-C; {base.note}"
    return replace(
        base,
        name=qualified(FAMILY, f"{name}-{severity}"),
        load=lambda look: Corrupted(load(look), name, severity),
        in_distribution=False,
        note=note,
        missing=(),
        part_of=FAMILY,
        ladder=Ladder(qualified(FAMILY, name), float(severity), clean=base.name),
    )


class Corrupted(Dataset[tuple[Tensor, int]]):
    """The images of a set with a corruption, each the same every time and in every process.

    Noise is drawn by the number of the image alone, so that of one image it only grows.

    Args:
        data: images uint8 (3, H, W) with labels.
        name: key of `CORRUPTIONS`.
        severity: 1 to 5.
    """

    def __init__(self, data: Any, name: str, severity: int) -> None:
        self.data = data
        self.name = name
        self.strength = CORRUPTIONS[name][0][severity - 1]
        for told in ("samples", "labels", "targets", "shard_files"):
            if getattr(data, told, None) is not None:
                setattr(self, told, getattr(data, told))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label."""
        image, label = self.data[index]
        rng = torch.Generator().manual_seed(zlib.crc32(f"{self.name}/{index}".encode()))
        made = CORRUPTIONS[self.name][1](image.float() / 255, self.strength, rng)
        return (255 * made.clamp(0, 1)).round().byte(), label
