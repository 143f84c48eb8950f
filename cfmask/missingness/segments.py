"""Segments: an image cut into parts that are hidden or shown as wholes.

Letters: H x W pixels, S segments. A segmentation is int64 (H, W) with every number from 0 to S - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfmask.decoding import read_image, stored_size
from cfmask.errors import InputError, at_least, unknown
from cfmask.images import Preprocess, as_bytes
from cfmask.missingness.object_masks import Example
from cfmask.missingness.per_image import Images
from cfmask.trust import find_callable, is_path

Labels = npt.NDArray[np.int64]
# RGB image float (H, W, 3) in [0, 1], side of a patch in pixels -> segments of any numbers (H, W).
Segmentation = Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]


def fitting(size: Sequence[int], most: int) -> int:
    """The largest side, up to `most` pixels, of patches that divide an image of a size."""
    common = math.gcd(*size)
    return max(side for side in range(1, min(most, common) + 1) if common % side == 0)


def _patches(image: npt.NDArray[Any], side: int) -> Labels:
    """Square patches, row by row."""
    high, wide = image.shape[:2]
    if high % side or wide % side:
        raise InputError(
            f"Expected a patch side that divides images of {high} x {wide} px, but got {side}; "
            f"give --side {fitting((high, wide), side)}."
        )
    rows, columns = np.arange(high) // side, np.arange(wide) // side
    return np.asarray(rows[:, None] * (wide // side) + columns, dtype=np.int64)


def _slic(image: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    from skimage.segmentation import slic

    return np.asarray(slic(image, n_segments=100, compactness=10))


def _quickshift(image: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    from skimage.segmentation import quickshift

    return np.asarray(quickshift(image, kernel_size=4, max_dist=200, ratio=0.2, rng=0))


# scikit-image's own, with the parameters of arXiv 2211.14646.
SEGMENTATIONS: dict[str, Segmentation] = {
    "patches": _patches,
    "slic": _slic,
    "quickshift": _quickshift,
}


@dataclass(frozen=True)
class Cutter:
    """Cuts images into segments.

    Attributes:
        name: of the segmentation, in reports.
        make: image -> segments of any numbers (H, W).
        most: segments that an image may have.
        own: whether `make` is the user's, which may give another thing tomorrow.
    """

    name: str
    make: Callable[[Example], npt.NDArray[Any]]
    most: int
    own: bool

    def __call__(self, example: Example) -> Labels:
        """The segments of an image.

        Raises:
            InputError: more segments than there may be, patches that do not divide the image, or
                what is no segmentation of it.
        """
        made = example.segments.get(self.name)
        found = np.asarray(self.make(example) if made is None else made.numpy())
        size = tuple(example.image.shape[1:])
        if found.shape != size or found.dtype.kind not in "iub":
            raise InputError(
                f"Expected whole numbers {size} as the segments of {example.name}, but {self.name} "
                f"gives {found.dtype} {found.shape}."
            )
        found = numbered(found)
        count = int(found.max()) + 1
        if count > self.most:
            raise InputError(
                f"Expected at most {self.most} segments, but {self.name} cuts {example.name} into "
                f"{count}; raise --most_segments, or take larger patches with --side."
            )
        return found


def cutters(
    kinds: Sequence[str], side: int, most: int, preprocess: Preprocess
) -> dict[str, Cutter]:
    """What cuts images, by the name of its segmentation.

    Args:
        kinds: keys of `SEGMENTATIONS`; folders of label maps, `CLASS/IMAGE.png` or `IMAGE.png`,
            of the pictures' size and with a colour for each segment; import paths of functions
            that take an image float (H, W, 3) in [0, 1] and give whole numbers (H, W).
        side: of square patches, in pixels.
        most: segments that an image may have.
        preprocess: of the model, by which label maps are resized and cropped as images are.

    Raises:
        InputError: an unknown name, two of one name, or a number below 1.
    """
    at_least(1, side, "pixels for the side of a patch")
    at_least(1, most, "segments of an image")
    found: dict[str, Cutter] = {}
    for kind in kinds:
        cutter = _cutter(kind, side, most, preprocess)
        if cutter.name in found:
            raise InputError(f"Expected segments of different names, but got {' '.join(kinds)}.")
        found[cutter.name] = cutter
    return found


def _cutter(kind: str, side: int, most: int, preprocess: Preprocess) -> Cutter:
    if kind in SEGMENTATIONS:
        cut = SEGMENTATIONS[kind]
        return Cutter(kind, lambda example: cut(as_array(example.image), side), most, own=False)
    folder = Path(kind)
    if folder.is_dir():
        return Cutter(
            folder.resolve().name, lambda example: _stored(folder, example, preprocess), most, True
        )
    if not is_path(kind):
        raise unknown("segmentation", kind, SEGMENTATIONS)
    made = find_callable(kind)
    return Cutter(kind, lambda example: made(as_array(example.image)), most, own=True)


def _stored(folder: Path, example: Example, preprocess: Preprocess) -> npt.NDArray[Any]:
    """The segments of a label map, in which each colour is one of them."""
    image = Path(example.name)
    name = f"{image.stem}.png"
    path = next(
        (p for p in (folder / image.parent.name / name, folder / name) if p.is_file()), None
    )
    if path is None:
        raise InputError(
            f"Expected a label map {name} for {example.name} in {folder} or its folder "
            f"{image.parent.name}, but there is none; make one, or leave the image out."
        )
    red, green, blue = as_bytes(read_image(path, as_stored=True)).int()
    size, own = tuple(red.shape), stored_size(example.name)
    # A photograph may be stored lying and shown upright.
    if own is not None and size not in (own, own[::-1]):
        raise InputError(
            f"Expected the label map {path} to be {own[1]} x {own[0]} pixels as its image, but got "
            f"{size[1]} x {size[0]}; make it anew."
        )
    colours = numbered((red * 65536 + green * 256 + blue).numpy())
    return preprocess.of_map(torch.from_numpy(colours).double()).long().numpy()


class Segmented:
    """Images with the segments that their user gives, so that these count as part of them.

    Args:
        data: the images.
        own: what cuts them.
    """

    def __init__(self, data: Images, own: Sequence[Cutter]) -> None:
        self.data = data
        self.own = own
        self.masked, self.labelled = data.masked, data.labelled

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        """An image with its segments."""
        example = self.data[index]
        made = {cutter.name: torch.from_numpy(cutter(example)) for cutter in self.own}
        return replace(example, segments=made)


def numbered(labels: npt.NDArray[Any]) -> Labels:
    """Segments of any numbers -> the same from 0, in the order of their numbers."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int64)


def as_array(image: Tensor) -> npt.NDArray[np.float64]:
    """Uint8 (3, H, W) as float64 (H, W, 3) in [0, 1]."""
    return image.permute(1, 2, 0).numpy().astype(np.float64) / 255


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
