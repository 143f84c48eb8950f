"""Object masks: images with labels and with masks that say where the object is.

Three layouts of files, and the digits world:

- of one's own: class folders, or pictures without; `image.png` beside `image.jpg` is its mask;
- Pixel ImageNet: class folders here, `<class>/<image>.png` in a folder of masks;
- Salient ImageNet: class folders here, `<class>/feature_<i>/<image>.JPEG` in a folder of masks, and
  the workers' answers, which say what features are of the object.

Letters: H x W pixels.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cfmask import digits
from cfmask.data.file_index import class_folders, entries
from cfmask.decoding import extent, read_image
from cfmask.errors import InputError
from cfmask.files import read_text
from cfmask.images import Preprocess, as_bytes
from cfmask.labels import class_numbers
from cfmask.shifts.pictures import pictures
from cfmask.wordnet import numbers

# Where the answers about Salient ImageNet lie in or beside the folder of its masks.
ANSWERS = "discover_spurious_features.csv"
PLACES = (".", "mturk_results", "../salient_imagenet-main/mturk_results", "../mturk_results")
# A feature is spurious if so many workers say that it is not of the object.
SPURIOUS, WORKERS = ("separate_object", "background"), 3
# Masks of Salient ImageNet are of the centre of the picture, 224 of 256 px of its short side.
SALIENT_SHARE = 256 / 224
# From here on a soft mask is of the object.
HALF = 0.5


@dataclass(frozen=True)
class Example:
    """An image and what is known of it.

    Attributes:
        name: path or number of the image.
        image: uint8 (3, H, W).
        label: class of the head; -1 if nobody knows.
        saliency: float (H, W) in [0, 1], where the object is; None without a mask.
        segments: int64 (H, W) by name, those that the user gives.
    """

    name: str
    image: Tensor
    label: int
    saliency: Tensor | None
    segments: Mapping[str, Tensor] = field(default_factory=dict)

    def object(self) -> Tensor | None:
        """Bool (H, W), True on the object; None without a mask."""
        return None if self.saliency is None else self.saliency >= HALF


@dataclass(frozen=True)
class Sample:
    """Files of an image: the picture, its label and its masks."""

    path: str
    label: int
    masks: tuple[str, ...]


class MaskedPictures:
    """Picture files with their masks.

    Args:
        samples: files of each image.
        preprocess: picture -> uint8 (3, H, W).
        salient: masks are soft and of the centre, as those of Salient ImageNet.
        as_stored: read pictures as they are stored, as published ones; else upright.
    """

    def __init__(
        self, samples: Sequence[Sample], preprocess: Preprocess, salient: bool, as_stored: bool
    ) -> None:
        self.samples = list(samples)
        self.preprocess = preprocess
        self.salient = salient
        self.as_stored = as_stored
        self.masked = all(sample.masks for sample in self.samples)
        self.labelled = all(sample.label >= 0 for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        """An image with its mask.

        Raises:
            InputError: a file that is no readable image, a mask of another size than its image, or
                one without object.
        """
        sample, look = self.samples[index], self.preprocess
        picture = read_image(sample.path, look.decoder, self.as_stored, misfit=look.misfit)
        found = None
        if sample.masks:
            read = self._salient if self.salient else self._exact
            found = torch.stack([read(path, extent(picture)) for path in sample.masks]).amax(0)
        return Example(sample.path, look(picture), sample.label, found)

    def _exact(self, path: str, size: tuple[int, int]) -> Tensor:
        flags = self._read(path) > 0
        if flags.shape != size:
            (high, wide), (height, width) = flags.shape, size
            raise InputError(
                f"Expected the mask {path} to be {width} x {height} pixels as its image, but got "
                f"{wide} x {high}; make it anew, or remove it."
            )
        return self.preprocess.of_map(_some(flags, path).float())

    def _salient(self, path: str, size: tuple[int, int]) -> Tensor:
        """A mask of the centre, put into a map of the whole picture."""
        mask = _some(self._read(path), path).float() / 255
        sides = [
            round(SALIENT_SHARE * side * long / min(size)) for side, long in zip(mask.shape, size)
        ]
        whole = torch.zeros([max(pair) for pair in zip(sides, mask.shape)])
        top, left = ((a - b) // 2 for a, b in zip(whole.shape, mask.shape))
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return self.preprocess.of_map(whole)

    def _read(self, path: str) -> Tensor:
        return as_bytes(read_image(path, as_stored=True)).amax(0)


def _some(values: Tensor, path: str) -> Tensor:
    if not values.any():
        raise InputError(
            f"Expected an object in the mask {path}, but all of it is black; paint the object "
            "white, or remove the file."
        )
    return values


class MaskedDigits:
    """Images of the digits world, whose object is the digit.

    Args:
        name: key of `cfmask.digits.SETS`.
        count: how many.
        seed: of the set.
    """

    masked = labelled = True

    def __init__(self, name: str = "id", count: int = 200, seed: int = 0) -> None:
        self.drawn = digits.digit_set(name, count, seed)

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> Example:
        """An image with its digit."""
        drawn = self.drawn
        flags = drawn.digit[index].float()
        return Example(f"digit {index}", drawn.images[index], int(drawn.labels[index]), flags)


def find_images(
    data: Path, masks: Path | None, classes: Sequence[str], preprocess: Preprocess, most: int
) -> MaskedPictures:
    """The images under a folder.

    Args:
        data: class folders, or pictures.
        masks: folder of their masks, of Pixel or Salient ImageNet's layout; None looks for masks
            beside the images. With a folder, images without a mask are left out.
        classes: of the classifier.
        preprocess: of the classifier.
        most: images at most, spread evenly over all; 0 for all.

    Raises:
        InputError: no folder, no pictures, or folders that are no classes.
    """
    for folder in (data, *([masks] if masks else [])):
        if not folder.is_dir():
            raise InputError(f"Expected a folder of images or masks, but got {folder}.")
    folders = class_folders_or_none(data)
    labels = _labels(folders, classes, data)
    salient = masks is not None and any(_feature_folders(masks / name) for name in folders)
    core = _core_features(masks) if masks is not None and salient else {}
    published = bool(folders) and all(name in numbers() for name in folders)
    samples = []
    for name in folders or [""]:
        files = [Path(path) for path in pictures(data / name)]
        beside = _beside(files) if masks is None else {}
        for path in files:
            if str(path) in beside.values():
                continue
            own: tuple[str, ...]
            if masks is None:
                own = tuple(beside[p] for p in [str(path)] if p in beside)
            elif salient:
                own = _of_features(masks / name, path, core.get(name, []))
            else:
                own = _existing([masks / name / f"{path.stem}.png"])
            if masks is None or own:
                samples.append(Sample(str(path), labels.get(name, -1), own))
    if not samples:
        raise InputError(
            f"Expected pictures{' with masks' * (masks is not None)} in {data}, but there are none."
        )
    if most and len(samples) > most:
        samples = [samples[k * len(samples) // most] for k in range(most)]
    return MaskedPictures(samples, preprocess, salient, published)


def class_folders_or_none(data: Path) -> list[str]:
    """Names of the class folders; none where there are pictures alone."""
    return class_folders(data) if any(entries(data).values()) else []


def _labels(folders: Sequence[str], classes: Sequence[str], data: Path) -> dict[str, int]:
    """Class of each folder: by name, or by WordNet id."""
    ids = numbers()
    if folders and all(name in ids for name in folders) and len(classes) == len(ids):
        return {name: ids[name] for name in folders}
    found = dict(zip(folders, class_numbers(folders, classes, str(data))))
    other = [name for name, number in found.items() if number is None]
    if other:
        raise InputError(
            f"Expected the folders of {data} to be classes of the model, but got "
            f"{', '.join(other[:8])}{', …' * (len(other) > 8)}; rename them, or put the pictures "
            "into one folder without classes."
        )
    return {name: number for name, number in found.items() if number is not None}


def _beside(files: Sequence[Path]) -> dict[str, str]:
    """Picture -> its mask: the PNG of the same name."""
    masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
    others = [path for path in files if path.suffix.lower() != ".png"]
    return {str(path): str(masks[path.stem]) for path in others if path.stem in masks}


def _existing(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths if path.is_file())


def _feature_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        is_folder and name.startswith("feature_") for name, is_folder in entries(folder).items()
    )


def _of_features(folder: Path, image: Path, features: Sequence[int]) -> tuple[str, ...]:
    return _existing([folder / f"feature_{k}" / f"{image.stem}.JPEG" for k in features])


def _core_features(masks: Path) -> dict[str, list[int]]:
    """Features of the object, by WordNet id, as the workers answered.

    Raises:
        InputError: no such answers, or a file of other columns.
    """
    places = [masks / place / ANSWERS for place in PLACES]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"Expected {ANSWERS} in {masks}, which says what features are of the object, but it "
            "is not there; take it from the repository of Salient ImageNet."
        )
    wanted = ("Input.wordnet_id", "Input.feature_index", "Answer.main")
    rows = list(csv.DictReader(io.StringIO(read_text(file))))
    if not rows or any(rows[0].get(key) is None for key in wanted):
        raise InputError(f"Expected the columns {', '.join(wanted)} in {file}.")
    asked, against = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in rows:
        pair = row[wanted[0]], row[wanted[1]]
        asked[pair] += 1
        against[pair] += row[wanted[2]] in SPURIOUS
    core: dict[str, list[int]] = {}
    for (name, feature), _ in asked.items():
        if against[name, feature] < WORKERS:
            core.setdefault(name, []).append(int(feature))
    return core
