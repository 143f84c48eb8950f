"""Segments: an image cut into parts that are hidden or shown as wholes.

Letters: H x W pixels, S segments. A segmentation is int64 (H, W) with every number from 0 to S - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cfmask.errors import InputError, at_least

Labels = npt.NDArray[np.int64]
# RGB image float (H, W, 3) in [0, 1], side of a patch in pixels -> segmentation.
Segmentation = Callable[[npt.NDArray[Any], int], Labels]


def _patches(image: npt.NDArray[Any], side: int) -> Labels:
    """Square patches, row by row."""
    high, wide = image.shape[:2]
    if high % side or wide % side:
        raise InputError(
            f"Expected a patch side that divides images of {high} x {wide} px, but got {side}."
        )
    rows, columns = np.arange(high) // side, np.arange(wide) // side
    return np.asarray(rows[:, None] * (wide // side) + columns, dtype=np.int64)


def _slic(image: npt.NDArray[Any], side: int) -> Labels:
    from skimage.segmentation import slic

    return numbered(slic(image, n_segments=100, compactness=10))


def _quickshift(image: npt.NDArray[Any], side: int) -> Labels:
    from skimage.segmentation import quickshift

    return numbered(quickshift(image, kernel_size=4, max_dist=200, ratio=0.2, rng=0))


# scikit-image's own, with the parameters of arXiv 2211.14646.
SEGMENTATIONS: dict[str, Segmentation] = {
    "patches": _patches,
    "slic": _slic,
    "quickshift": _quickshift,
}


def numbered(labels: npt.NDArray[Any]) -> Labels:
    """Segments of any numbers -> the same from 0, in the order of their numbers."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int64)


def segment(image: npt.NDArray[Any], kind: str, side: int, most: int, name: str) -> Labels:
    """The segments of an image.

    Args:
        image: float (H, W, 3) in [0, 1].
        kind: key of `SEGMENTATIONS`.
        side: of square patches, in pixels.
        most: segments that it may have.
        name: of the image, for the message.

    Raises:
        InputError: more segments, or patches that do not divide the image.
    """
    at_least(1, side, "pixels for the side of a patch")
    found = SEGMENTATIONS[kind](image, side)
    count = int(found.max()) + 1
    if count > most:
        raise InputError(
            f"Expected at most {most} segments, but {kind} cuts {name} into {count}; raise "
            "--most_segments, or take larger patches with --side."
        )
    return found


def order_of(
    labels: Labels, saliency: npt.NDArray[Any] | None, order: str, seed: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Segments in the order in which they are hidden, int64 (S,).

    Args:
        labels: the segmentation.
        saliency: float (H, W), what tells relevant pixels; not read for `random`.
        order: `random`, or by the sum of `saliency` in a segment: `most` or `least` relevant first.
        seed: of chance; the same whole numbers give the same order.
    """
    count = int(labels.max()) + 1
    if order == "random":
        return np.random.default_rng(seed).permutation(count)
    assert saliency is not None
    sums = np.bincount(labels.ravel(), saliency.astype(np.float64).ravel(), count)
    return np.argsort(-sums if order == "most" else sums, kind="stable").astype(np.int64)


def hidden_by_degree(
    labels: Labels, order: npt.NDArray[np.int64], steps: int
) -> npt.NDArray[np.bool_]:
    """Pixels that are hidden at the degrees 0, 1/steps, …, 1: bool (steps + 1, H, W).

    At a degree d the first int(d · S) segments of the order are hidden.
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    counts = np.arange(steps + 1) * len(order) // steps
    return place[labels] < counts[:, None, None]
