"""Styles of the digits world: images -> the same images as a sketch, a mosaic, in fog, ...

Each takes images float (N, 3, S, S) in [0, 1], S = 48, and a generator for what it draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 48


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def _sketch(images: Tensor, rng: torch.Generator) -> Tensor:
    """Dark edges on white paper: Sobel magnitude of the luminance."""
    grey = F.pad(_grey(images)[:, :1], (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).view(1, 1, 3, 3)
    edges = (F.conv2d(grey, kernel) ** 2 + F.conv2d(grey, kernel.mT) ** 2).sqrt()
    return (1 - edges).clamp(0, 1).expand_as(images)


def _painting(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flat, saturated strokes: 3 x 3 median, stronger colours, six levels."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    median = F.unfold(padded, 3).view(len(images), 3, 9, SIZE, SIZE).median(dim=2).values
    grey = _grey(median)
    return ((grey + 1.6 * (median - grey)).clamp(0, 1) * 5).round() / 5


def _mosaic(images: Tensor, rng: torch.Generator) -> Tensor:
    return F.avg_pool2d(images, 3).repeat_interleave(3, -1).repeat_interleave(3, -2)


def _blurry(images: Tensor, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    blurred: Tensor = gaussian_blur(images, [7, 7], [1.4, 1.4])
    return blurred


STYLES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "photo": lambda images, rng: images,
    "sketch": _sketch,
    "negative": lambda images, rng: 1 - images,
    "painting": _painting,
    "mosaic": _mosaic,
    "blurry": _blurry,
    "noisy": lambda images, rng: images + 0.1 * torch.randn(images.shape, generator=rng),
    "gray": lambda images, rng: _grey(images),
}


def _duotone(images: Tensor, rng: torch.Generator) -> Tensor:
    """The luminance as a blend of two colours, drawn for each image, a dark and a light one."""
    dark, light = (torch.rand(len(images), 3, 1, 1, generator=rng) for _ in range(2))
    return 0.4 * dark + (0.6 + 0.4 * light - 0.4 * dark) * _grey(images)


def _fog(images: Tensor, rng: torch.Generator) -> Tensor:
    """White of a thickness from 0 to 0.7, which changes slowly over the image."""
    coarse = torch.rand(len(images), 1, 4, 4, generator=rng)
    thickness = 0.7 * F.interpolate(coarse, SIZE, mode="bilinear", align_corners=True)
    return images + (1 - images) * thickness


def _waves(images: Tensor, rng: torch.Generator) -> Tensor:
    """Every row moved sideways by a sine of 1.5 px and of 16 px length, with a phase an image."""
    phase = 2 * torch.pi * torch.rand(len(images), 1, 1, generator=rng)
    rows = torch.arange(SIZE).view(1, -1, 1)
    moved = torch.arange(SIZE).view(1, 1, -1) + 1.5 * (2 * torch.pi * rows / 16 + phase).sin()
    x = (2 * moved + 1) / SIZE - 1
    y = ((2 * rows + 1) / SIZE - 1).expand_as(x)
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# Of the held-out world; pretraining knows none of them.
OTHER_STYLES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "chalk": lambda images, rng: 0.15 + 0.85 * (1 - _sketch(images, rng)),
    "duotone": _duotone,
    "fog": _fog,
    "waves": _waves,
}
