"""Features of parts: do they add up to those of the image, and stay alike where it does?

Letters: n images of a stretch, N images, P patches, D features, H x W pixels.

Source: arXiv 2211.14646, section 5. Lengths in pixels are those of an image of 224 px; of another
size they are in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.missingness.curves import mean, resampled
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import Example
from cfmask.missingness.removal import stacked
from cfmask.missingness.segments import fitting

SIZE = 224
SIZES = (224, 200, 128, 64, 32)
HALVES = (16, 25, 36)
MOVES = (5, 10, 15, 20, 25)
# The most and the least that a figure can be.
PLUS, COSINE = (np.inf, 0.0), (1.0, -1.0)


class Linearity:
    """Whether the features of an image are the sum of those of its patches, each shown alone.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
        sides: of square patches, in pixels.

    Raises:
        InputError: a side that does not divide the image.
    """

    def __init__(self, model: Classifier, hidings: Sequence[str], sides: Sequence[int]) -> None:
        for side in sides:
            if any(length % side for length in model.image_size):
                high, wide = model.image_size
                fit = fitting([length // 2 for length in model.image_size], min(sides))
                raise InputError(
                    f"Expected patches of {' and '.join(map(str, sorted(sides)))} px that divide "
                    f"images of {high} x {wide} px for linearity, which doubles --side, but {side} "
                    f"does not; give --side {fit}, or leave linearity out of --measures."
                )
        self.model = model
        self.hidings = hidings
        self.sides = sides

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], first: int) -> dict[str, Tensor]:
        """Distance, cosine and size float64 (n, 5) by `SIDE/WAY`; see `linearity`."""
        images = stacked(examples, self.model)
        whole = self.model.features(images).double()
        found = {}
        for side in self.sides:
            grid = [length // side for length in images.shape[2:]]
            for way in self.hidings:
                total, size = torch.zeros_like(whole), torch.zeros_like(whole[:, 0])
                for k in range(grid[0] * grid[1]):
                    row, column = k // grid[1] * side, k % grid[1] * side
                    hidden = torch.ones_like(images[:, 0], dtype=torch.bool)
                    hidden[:, row : row + side, column : column + side] = False
                    part = HIDINGS[way](self.model, images, hidden).double()
                    total += part
                    size += part.norm(dim=1) / (grid[0] * grid[1])
                distance = (total - whole).norm(dim=1) / (1e-8 + whole.norm(dim=1))
                cosine = F.cosine_similarity(total, whole, dim=1)
                length = whole.norm(dim=1)
                figures = [distance, cosine, size, length, length / (grid[0] * grid[1])]
                found[f"{side}/{way}"] = torch.stack(figures, 1).cpu()
        return found


def linearity(found: Mapping[str, npt.NDArray[Any]], samples: int) -> list[dict[str, Any]]:
    """Means over the images of what `Linearity` gives.

    Args:
        found: as `Linearity` gives it, for all images.
        samples: of the bootstrap.

    Returns:
        Rows: side of the patches, way of hiding, relative distance of the sum of the patches'
        features to those of the whole, their cosine, mean length of a patch's features, length of
        the whole's, and an even share of it for a patch; each with both ends of its interval.
    """
    lengths = "length, patch", "length, whole", "length, share of whole"
    limits = {"relative distance": PLUS, "cosine": COSINE, **dict.fromkeys(lengths, PLUS)}
    rows = []
    for place, values in found.items():
        side, way = place.split("/")
        weights = resampled(len(values), samples)
        means = {
            name: mean(column, weights, *limits[name]) for name, column in zip(limits, values.T)
        }
        rows.append({"patch side": int(side), "hidden by": way, **means})
    return rows


class Concordance:
    """Whether features stay alike where the image does: made smaller, and in a moved window.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
        seed: of the directions in which windows move.
    """

    def __init__(self, model: Classifier, hidings: Sequence[str], seed: int) -> None:
        self.model = model
        self.hidings = hidings
        self.seed = seed

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], first: int) -> dict[str, Tensor]:
        """Cosines of features, float64 (n,), by what was shown.

        By `size/PIXELS/WAY` the change of the cosine of a pair; by `window/HALF/MOVE/WAY` the
        cosine of both windows, and by `window/HALF/MOVE` that of the masks.

        Raises:
            InputError: a single image, which has none to be paired with.
        """
        if len(examples) < 2:
            raise InputError(
                "Expected at least 2 images for pairs of them, but got 1; leave concordance out."
            )
        images = stacked(examples, self.model)
        return {**self._by_size(images), **self._by_window(images, first)}

    def _by_size(self, images: Tensor) -> dict[str, Tensor]:
        found = {}
        for way in self.hidings:
            cosines = {}
            for pixels in SIZES:
                small, hidden = shrunk(images, pixels)
                features = HIDINGS[way](self.model, small, hidden).double()
                cosines[pixels] = F.cosine_similarity(features, features.roll(1, 0), dim=1)
            for pixels in SIZES[1:]:
                found[f"size/{pixels}/{way}"] = (cosines[pixels] - cosines[SIZE]).abs().cpu()
        return found

    def _by_window(self, images: Tensor, first: int) -> dict[str, Tensor]:
        found = {}
        rngs = [np.random.default_rng((self.seed, first + k)) for k in range(len(images))]
        angles = np.array([rng.uniform(0, 2 * np.pi) for rng in rngs])
        for half in HALVES:
            middle = windows(images, half, np.zeros_like(angles), angles)
            seen = {way: self._shown(way, images, middle) for way in self.hidings}
            for move in MOVES:
                moved = windows(images, half, np.full_like(angles, move), angles)
                place = f"window/{half}/{move}"
                before, after = (mask.flatten(1).double() for mask in (middle, moved))
                found[place] = F.cosine_similarity(before, after, dim=1).cpu()
                for way, features in seen.items():
                    other = self._shown(way, images, moved)
                    found[f"{place}/{way}"] = F.cosine_similarity(features, other, dim=1).cpu()
        return found

    def _shown(self, way: str, images: Tensor, visible: Tensor) -> Tensor:
        return HIDINGS[way](self.model, images, ~visible).double()


def shrunk(images: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Images made smaller, at the top left, and what lies around them: bool (n, H, W).

    Args:
        images: float (n, 3, H, W).
        pixels: side of the smaller image, in units of an image of 224 px.
    """
    size = [max(1, round(length * pixels / SIZE)) for length in images.shape[2:]]
    whole, hidden = torch.zeros_like(images), torch.ones_like(images[:, 0], dtype=torch.bool)
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    whole[:, :, : size[0], : size[1]] = small
    hidden[:, : size[0], : size[1]] = False
    return whole, hidden


def windows(images: Tensor, half: int, moves: npt.NDArray[Any], angles: npt.NDArray[Any]) -> Tensor:
    """Square windows about the centre, each moved by its own way: bool (n, H, W), True inside.

    Args:
        images: float (n, 3, H, W).
        half: of a window's side, in units of an image of 224 px.
        moves: (n,), how far, likewise.
        angles: (n,), where to, in radians.
    """
    high, wide = images.shape[2:]
    inside = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for k, (move, angle) in enumerate(zip(moves, angles)):
        y = round(high / 2 + move * np.sin(angle) * high / SIZE)
        x = round(wide / 2 + move * np.cos(angle) * wide / SIZE)
        tall, broad = (max(1, round(half * side / SIZE)) for side in (high, wide))
        inside[k, max(0, y - tall) : y + tall, max(0, x - broad) : x + broad] = True
    return inside


def concordance(
    found: Mapping[str, npt.NDArray[Any]], samples: int
) -> tuple[list[dict[str, Any]], ...]:
    """Means over the images of what `Concordance` gives.

    Args:
        found: as `Concordance` gives it, for all images.
        samples: of the bootstrap.

    Returns:
        Rows by image size: mean change of the cosine between the features of two images. Rows by
        moved window: mean cosine of the features. Both with both ends of their intervals; and the
        mean cosine of the masks.
    """
    sizes: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    for place, values in found.items():
        kind, *parts = place.split("/")
        weights = resampled(len(values), samples)
        if kind == "size":
            change = mean(values, weights, 2)
            sizes.append({"image side": int(parts[0]), "hidden by": parts[1], "change": change})
        elif len(parts) == 3:
            half, move, way = parts
            masks = float(found[f"window/{half}/{move}"].mean())
            row = {"half side": int(half), "moved by": int(move), "hidden by": way}
            moved.append(
                {**row, "cosine": mean(values, weights, *COSINE), "cosine of masks": masks}
            )
    return sizes, moved
