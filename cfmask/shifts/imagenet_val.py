"""ImageNet val in folders or flat; its ReaL labels; its images of a subset's classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cfmask.data.file_index import entries
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.files import read_text
from cfmask.shift import Size
from cfmask.shifts.origin import Origin, ReadContents, several_classes
from cfmask.shifts.pictures import Contents, Samples, pictures
from cfmask.weights import BROKEN
from cfmask.wordnet import numbers, real_labels, subset, synsets

DEVKIT = "ILSVRC2012_devkit_t12"
PLACES = ("val", "imagenet/val", "imagenet-val", "ILSVRC2012_img_val")
SOURCE = "https://www.image-net.org/download.php"
LICENCE = "ImageNet terms of access: non-commercial research and education"
AS_STORED = READING[True]
# Groups of images by their number of ReaL labels.
COUNTS = ("1 label", "2 labels", "3 or more labels")


def val(folder: Path, root: Path) -> Contents:
    """ImageNet val, in folders by WordNet id or flat with the labels of the devkit."""
    if any(is_folder and name != DEVKIT for name, is_folder in entries(folder).items()):
        note = f"label = WordNet id of the folder; {AS_STORED}"
        return Contents.of_folders(folder, numbers(), "WordNet ids", note)
    note = f"label = ground truth of the ILSVRC2012 devkit; {AS_STORED}"
    return Contents.of(_flat(folder, root), note, labels=numbers())


def val_of_subset(folder: Path, root: Path, name: str) -> Contents:
    """The images of val whose class is among those of ImageNet-R ("r") or -A ("a")."""
    whole, classes = val(folder, root), subset(name)
    samples = [(path, label) for path, label in whole.samples if label in set(classes)]
    labels = {synsets()[k]: k for k in classes}
    facts: Any = {"labels": labels, "classes": classes, "complaint": whole.complaint}
    return Contents.of(samples, whole.note, **facts)


def val_with_real_labels(folder: Path, root: Path) -> Contents:
    """The images of val that have ReaL labels, any of which is right (Beyer et al., 2020).

    They are grouped by how many labels they have.
    """
    real = real_labels()
    seen = [(path, real[image_number(path) - 1]) for path in all_pictures(folder)]
    seen = [(path, classes) for path, classes in seen if classes]
    labels, accepts = several_classes([classes for _, classes in seen])
    groups = tuple(min(len(classes), len(COUNTS)) - 1 for _, classes in seen)
    note = (
        "ReaL labels by the number in the file's name, images without any left out; "
        f"{groups.count(0)} of {len(groups)} images have a single label; groups: numbers of "
        f"labels; {AS_STORED}"
    )
    samples = [(path, label) for (path, _), label in zip(seen, labels)]
    return Contents.of(samples, note, accepts=accepts, groups=groups, group_names=COUNTS)


def of_val(
    title: str,
    expected: Size | None,
    read: ReadContents,
    source: str = SOURCE,
    licence: str = LICENCE,
    **facts: Any,
) -> Origin:
    """A set of val's own images; `facts` are further attributes by name."""
    return Origin(title, PLACES, expected, source, licence, read, made_of="val", **facts)


def image_number(path: str) -> int:
    """The number in the name ILSVRC2012_val_<number>.JPEG, from 1 to 50,000.

    Raises:
        InputError: the file has another name.
    """
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", Path(path).stem)
    if not match or not 1 <= int(match[1]) <= len(real_labels()):
        raise InputError(
            f"Expected a name like ILSVRC2012_val_00000001.JPEG, whose number tells the label, but "
            f"got {path}; restore the original names."
        )
    return int(match[1])


def all_pictures(folder: Path) -> list[str]:
    """Pictures of val, whether they lie flat or in class folders."""
    kinds = entries(folder)
    inner = sorted(folder / name for name in kinds if kinds[name] and name != DEVKIT)
    return [path for place in (folder, *inner) for path in pictures(place)]


def _flat(folder: Path, root: Path) -> Samples:
    """Samples of the files ILSVRC2012_val_<number>.JPEG; the number is the line of the label."""
    labels = devkit_labels(folder, root)
    if labels is None:
        raise InputError(
            f"Expected folders by WordNet id in {folder}, or the unpacked {DEVKIT} (or "
            f"torchvision's meta.bin) beside it; get it from {SOURCE}."
        )
    numbered = [(path, image_number(path)) for path in pictures(folder)]
    if lone := [path for path, number in numbered if number > len(labels)]:
        raise InputError(f"Expected a label for {lone[0]}, but there are {len(labels)} labels.")
    return [(path, labels[number - 1]) for path, number in numbered]


def devkit_labels(folder: Path, root: Path) -> list[int] | None:
    """Head classes of the validation images in the order of their numbers; None if not known.

    They are read from the devkit, whose own class numbers are not the head's, or from the file
    that torchvision's ImageNet makes of it: in the folder of val, beside it or in the data root.

    Raises:
        InputError: a damaged file.
    """
    for base in (folder, folder.parent, root):
        data, meta = base / DEVKIT / "data", base / "meta.bin"
        if data.is_dir() or meta.is_file():
            wnids = _devkit_wnids(data) if data.is_dir() else _torchvision_wnids(meta)
            unknown = [wnid for wnid in wnids if wnid not in numbers()]
            if unknown:
                raise _damaged(base, f"{unknown[0]!r:.60} is no class of ImageNet")
            return [numbers()[wnid] for wnid in wnids]
    return None


def _devkit_wnids(data: Path) -> list[str]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        table = loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
        truth = read_text(data / "ILSVRC2012_validation_ground_truth.txt").split()
        return [wnid[int(number)] for number in truth]
    except InputError:
        raise
    except (MatReadError, *BROKEN) as error:
        raise _damaged(data, repr(error)) from error


def _torchvision_wnids(meta: Path) -> list[str]:
    try:
        return [str(wnid) for wnid in torch.load(meta, weights_only=True)[1]]
    except BROKEN as error:
        raise _damaged(meta, repr(error)) from error


def _damaged(place: Path, why: str) -> InputError:
    return InputError(f"Cannot read the labels in {place}: {why:.200}. Unpack the devkit again.")
