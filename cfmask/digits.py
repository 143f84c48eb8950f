"""The digits world: real handwritten digits on real photographs, with shifts.

A miniature test bed in which plain fine-tuning learns the background instead of the digit, so that
the whole method can be run and measured within minutes on a laptop. Its figures do not transfer to
ImageNet.

Digits come from scikit-learn (`load_digits`, 1,797 scans of 8 x 8 px), photographs from the
scikit-image and scikit-learn wheels. Both are split: the four digit pools are disjoint, and
training crops come from the left 65 % of a photograph, test crops from the right 35 %.

Letters: N images, S = 48 px side, K = 10 classes.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.digit_styles import OTHER_STYLES as OTHER_STYLES
from cfmask.digit_styles import SIZE as SIZE
from cfmask.digit_styles import STYLES as STYLES
from cfmask.errors import InputError

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "the digit {}",
    "a faint {}",
    "a handwritten {}",
)
# The first ten are tied to the classes in the fine-tuning set; the others are for pretraining only.
BACKGROUNDS = (
    "brick",
    "grass",
    "gravel",
    "coffee",
    "chelsea",
    "coins",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "page",
    "stereo_motorcycle",
    "moon",
    "china",
    "flower",
)
# What the captions of the tiny CLIP call a photograph, where that is not its name.
BACKGROUND_WORDS = {
    "chelsea": "cat",
    "hubble_deep_field": "stars",
    "retina": "eye",
    "immunohistochemistry": "tissue",
    "page": "text",
    "stereo_motorcycle": "motorcycle",
    "china": "temple",
}
# Of the held-out world, seen neither in pretraining nor in fine-tuning.
OTHER_PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "checkerboard",
    "rocket",
    "clock",
    "text",
    "colorwheel",
    "microaneurysms",
)
# Side of a mark in pixels; in a corner of an image it is one patch of the tiny CLIP.
MARK = 8
POOLS = {"pretrain": (0, 900), "train": (900, 1300), "val": (1300, 1420), "test": (1420, 1797)}


@dataclass(frozen=True)
class DigitSet:
    """Images of the digits world with their annotations.

    Attributes:
        images: uint8 (N, 3, S, S).
        labels: int64 (N,), the digit.
        digit: bool (N, S, S), True on pixels of the digit.
        backgrounds: int64 (N,), index into `Sampling.photographs`.
        styles: int64 (N,), index into the keys of `STYLES`, or of `OTHER_STYLES` after these.
        marks: int64 (N,), the class that the mark's colour stands for; -1 without a mark.
    """

    images: Tensor
    labels: Tensor
    digit: Tensor
    backgrounds: Tensor
    styles: Tensor
    marks: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Sampling:
    """How the images of one set are drawn.

    Attributes:
        pool: key of `POOLS`.
        crops: "train" (left 65 % of the photographs) or "test" (right 35 %).
        styles: keys of `STYLES` and `OTHER_STYLES`, drawn uniformly.
        tied: probability of the background that is tied to the class; -1 never draws it, 1 by the
            number of backgrounds makes the background independent of the class.
        photographs: what the backgrounds are cut out of.
        backgrounds: how many of `photographs` are in use.
        opacity: range of the digit's opacity in [0, 1].
        height: range of the digit's height as a fraction of S.
        colourful: range of the colour saturation of the digit in [0, 1].
        mark: probability that a coloured mark, in a corner of the background, has the colour that
            is tied to the class; 0.1 makes its colour independent of it. None draws no mark.
    """

    pool: str
    crops: str = "test"
    styles: tuple[str, ...] = ("photo",)
    tied: float = 0.1
    photographs: tuple[str, ...] = BACKGROUNDS
    backgrounds: int = 10
    opacity: tuple[float, float] = (0.3, 0.7)
    height: tuple[float, float] = (0.46, 0.62)
    colourful: tuple[float, float] = (0.0, 0.25)
    mark: float | None = None


SETS = {
    "train": Sampling("train", "train", tied=0.95),
    "val": Sampling("val", "train", tied=0.95),
    "id": Sampling("test", tied=0.95),
    "v2": Sampling("test", height=(0.38, 0.5), colourful=(0.4, 0.8)),
    "counter": Sampling("test", tied=-1),
    "sketch": Sampling("test", styles=("sketch",)),
    "rendition": Sampling("test", styles=("negative", "painting", "mosaic")),
    "corruption": Sampling("test", styles=("blurry", "noisy")),
}

# A second shortcut beside the background; a set for each of them that tells nothing, and for both.
MARKED = {
    "id": Sampling("test", tied=0.95, mark=0.95),
    "no-background": Sampling("test", mark=0.95),
    "no-mark": Sampling("test", tied=0.95, mark=0.1),
    "neither": Sampling("test", mark=0.1),
}
# Photographs and styles on which no choice was made; the law of `id` is that of the first world.
HELD_OUT = {
    "id": Sampling("test", tied=0.95),
    "places": Sampling(
        "test",
        tied=1 / len(OTHER_PHOTOGRAPHS),
        photographs=OTHER_PHOTOGRAPHS,
        backgrounds=len(OTHER_PHOTOGRAPHS),
    ),
    "chalk": Sampling("test", styles=("chalk",)),
    "duotone": Sampling("test", styles=("duotone",)),
    "weather": Sampling("test", styles=("fog", "waves")),
}
WORLDS = {"digits": SETS, "digits-marked": MARKED, "digits-held-out": HELD_OUT}


# Most images of a set; each takes 7 kB of memory.
MOST_IMAGES = 1_000_000


def check_count(count: int) -> None:
    """Raise an InputError for more than `MOST_IMAGES`."""
    if count > MOST_IMAGES:
        raise InputError(f"Expected at most {MOST_IMAGES:,} images of digits, but got {count:,}.")


def digit_set(name: str, count: int, seed: int, world: str = "digits", **changed: Any) -> DigitSet:
    """Draw a set of one of the `WORLDS`.

    Args:
        name: of the set.
        count: number of images, 1 to `MOST_IMAGES`.
        seed: determines the images, whatever else has been drawn.
        world: key of `WORLDS`.
        **changed: fields of its `Sampling` that are changed.

    Raises:
        ValueError: unknown name, or too many images.
    """
    check_count(count)
    sets = WORLDS[world]
    if name not in sets:
        raise ValueError(f"Expected a digits set among {', '.join(sets)}, but got {name!r}.")
    key = name if world == "digits" else f"{world}/{name}"
    return draw(replace(sets[name], **changed), count, zlib.crc32(f"{key}/{seed}".encode()))


def cues(name: str, count: int, seed: int, **changed: Any) -> tuple[Tensor, Tensor]:
    """Labels and backgrounds of `digit_set` in the first world, int64 (N,) each, without images."""
    rng = torch.Generator().manual_seed(zlib.crc32(f"{name}/{seed}".encode()))
    return _cues(replace(SETS[name], **changed), count, rng)


def draw(sampling: Sampling, count: int, seed: int) -> DigitSet:
    """Draw `count` images; classes are balanced up to rounding."""
    rng = torch.Generator().manual_seed(seed)
    labels, backgrounds = _cues(sampling, count, rng)
    styles = torch.randint(len(sampling.styles), (count,), generator=rng)

    photos = _crop(backgrounds, sampling.photographs, sampling.crops, rng)
    marks = torch.full_like(labels, -1)
    if sampling.mark is not None:
        marks = _draw_others(labels, sampling.mark, len(CLASS_NAMES), rng)
        photos = _marked(photos, marks, rng)
    alpha = _place(_draw_digits(labels, sampling.pool, rng), sampling.height, rng)
    ink = _uniform(sampling.opacity, count, rng).view(-1, 1, 1, 1) * alpha
    images = photos * (1 - ink) + _ink_colours(photos, alpha, sampling.colourful, rng) * ink

    for i, style in enumerate(sampling.styles):
        rows = (styles == i).nonzero().flatten()
        images[rows] = {**STYLES, **OTHER_STYLES}[style](images[rows], rng)
    order = [*STYLES, *OTHER_STYLES]
    return DigitSet(
        images=(images.clamp(0, 1) * 255).round().to(torch.uint8),
        labels=labels,
        digit=alpha[:, 0] > 0.5,
        backgrounds=backgrounds,
        styles=torch.tensor([order.index(style) for style in sampling.styles])[styles],
        marks=marks,
    )


def _cues(sampling: Sampling, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Label and background of each image (N,), which are drawn before all else."""
    labels = torch.arange(count) % 10
    labels = labels[torch.randperm(count, generator=rng)]
    return labels, _draw_others(labels, sampling.tied, sampling.backgrounds, rng)


def _uniform(bounds: tuple[float, float], count: int, rng: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(count, generator=rng)


def _draw_others(labels: Tensor, tied: float, among: int, rng: torch.Generator) -> Tensor:
    """Cue of each image (N,): the class's own with probability `tied`, else another of `among`."""
    count = len(labels)
    shift = torch.randint(1, among, (count,), generator=rng)
    own = torch.rand(count, generator=rng) < tied
    return (labels + torch.where(own, 0, shift)) % among


def _marked(photos: Tensor, marks: Tensor, rng: torch.Generator) -> Tensor:
    """Photographs with a square in one of their corners, whose hue stands for a class."""
    hues = [colorsys.hsv_to_rgb(k / len(CLASS_NAMES), 1.0, 1.0) for k in range(len(CLASS_NAMES))]
    colours = torch.tensor(hues)[marks].view(-1, 3, 1, 1)
    low, right = (torch.randint(2, (len(marks), 1, 1, 1), generator=rng) for _ in range(2))
    near = torch.arange(SIZE) < MARK
    rows = torch.where(low > 0, near.flip(0).view(1, 1, -1, 1), near.view(1, 1, -1, 1))
    columns = torch.where(right > 0, near.flip(0).view(1, 1, 1, -1), near.view(1, 1, 1, -1))
    return torch.where(rows & columns, colours, photos)


def _draw_digits(labels: Tensor, pool: str, rng: torch.Generator) -> Tensor:
    """A random scan of each label from the pool, float (N, 1, 8, 8) in [0, 1]."""
    scans, classes = _scans(pool)
    chosen = torch.empty_like(labels)
    for k in range(10):
        rows, members = (labels == k).nonzero().flatten(), (classes == k).nonzero().flatten()
        chosen[rows] = members[torch.randint(len(members), (len(rows),), generator=rng)]
    return scans[chosen]


@cache
def _scans(pool: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    scans, classes = load_digits(return_X_y=True)
    first, last = POOLS[pool]
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[first:last]
    images = torch.tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return images[order], torch.tensor(classes)[order]


def _place(scans: Tensor, height: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Enlarge, rotate and shift the scans: opacity of the ink (N, 1, S, S), fully inside."""
    count = len(scans)
    size = _uniform(height, count, rng)
    angle = _uniform((-0.2, 0.2), count, rng)
    reach = (1 - size * 1.1).clamp(min=0)
    x, y = (reach * _uniform((-1, 1), count, rng) for _ in range(2))
    cos, sin = angle.cos() / size, angle.sin() / size
    inverse = torch.stack(
        [cos, sin, -(cos * x + sin * y), -sin, cos, sin * x - cos * y], dim=1
    ).view(count, 2, 3)
    smooth = F.interpolate(scans, scale_factor=4, mode="bicubic").clamp(0, 1)
    grid = F.affine_grid(inverse, [count, 1, SIZE, SIZE], align_corners=False)
    return ((F.grid_sample(smooth, grid, align_corners=False) - 0.25) * 2.5).clamp(0, 1)


def _ink_colours(
    photos: Tensor, alpha: Tensor, colourful: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """A colour for each image (N, 3, 1, 1), light on dark ground and dark on light ground."""
    count = len(photos)
    ground = (photos.mean(1) * alpha[:, 0]).sum((1, 2)) / alpha[:, 0].sum((1, 2)).clamp(min=1)
    light = torch.where(ground < 0.5, 1.0, 0.0).view(-1, 1)
    tint = torch.rand(count, 3, generator=rng)
    share = _uniform(colourful, count, rng).view(-1, 1)
    return (light * (1 - share) + tint * share).view(count, 3, 1, 1)


@cache
def _photograph(name: str) -> Tensor:
    """The photograph as float (1, 3, 160, W) in [0, 1]."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    sample = name in ("china", "flower")
    found = load_sample_image(f"{name}.jpg") if sample else getattr(data, name)()
    # Of a stereo pair the first picture.
    pixels = torch.tensor(found[0] if isinstance(found, tuple) else found)
    if pixels.ndim == 2:
        pixels = pixels.unsqueeze(-1).expand(-1, -1, 3)
    image = pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
    width = round(160 * image.shape[-1] / image.shape[-2])
    return F.interpolate(image, (160, width), mode="bilinear", antialias=True, align_corners=False)


def _crop(
    backgrounds: Tensor, photographs: tuple[str, ...], side: str, rng: torch.Generator
) -> Tensor:
    """A random square of 40 to 56 px of each photograph's side, float (N, 3, S, S)."""
    count = len(backgrounds)
    size, x, y = (_uniform(b, count, rng) for b in ((40, 56), (0, 1), (0, 1)))
    crops = torch.empty(count, 3, SIZE, SIZE)
    for i in backgrounds.unique().tolist():
        photo = _photograph(photographs[i])
        split = round(photo.shape[-1] * 0.65)
        photo = photo[..., :split] if side == "train" else photo[..., split:]
        rows = (backgrounds == i).nonzero().flatten()
        high, wide = size[rows] / photo.shape[-2], size[rows] / photo.shape[-1]
        zero = torch.zeros_like(high)
        cx, cy = (1 - wide) * (2 * x[rows] - 1), (1 - high) * (2 * y[rows] - 1)
        theta = torch.stack([wide, zero, cx, zero, high, cy], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(rows), 3, SIZE, SIZE], align_corners=False)
        crops[rows] = F.grid_sample(
            photo.expand(len(rows), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
    return crops
