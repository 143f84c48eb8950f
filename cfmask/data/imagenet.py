"""ImageNet and its shift sets, for classifiers of its 1000 classes in sorted WordNet order.

A label is the number of a head class; in ObjectNet it is the number of a class of the set, which
`Shift.accepts` takes to the head's. Labels come from the names of folders and files, never from the
order in which folders happen to be listed. Pictures are decoded as published results have it: as
RGB, with neither EXIF orientation nor transparency applied.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from cfmask.data.folders import class_folders
from cfmask.data.images import Preprocess
from cfmask.data.shifts import Request, Shift, Size
from cfmask.errors import InputError, unknown

Samples = list[tuple[str, int]]

BORDER = 2
DEVKIT = "ILSVRC2012_devkit_t12"
OBJECTNET_FILES = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


@dataclass(frozen=True)
class Origin:
    """What is known of a set before its files are looked at.

    Attributes:
        title: as its authors call it.
        places: folders in which it may lie under the data root; the first that is there is taken.
        expected: its full size.
        source: where to get it.
        licence: as its authors state it.
        subset: "r" or "a" for the classes that the argmax is restricted to; "" for all.
    """

    title: str
    places: tuple[str, ...]
    expected: Size
    source: str
    licence: str
    subset: str = ""


_V2_HOME = "https://github.com/modestyachts/ImageNetV2"
_V2_LICENCE = "images from Flickr under their own licences, to be used as ImageNet's"


def _v2(title: str, name: str) -> Origin:
    stems = (f"imagenetv2-{name}-format-val", f"ImageNetV2-{name}", f"imagenetv2-{name}")
    return Origin(title, stems, Size(10_000, 1000), _V2_HOME, _V2_LICENCE)


ORIGINS: dict[str, Origin] = {
    "val": Origin(
        "ImageNet val",
        ("val", "imagenet/val", "imagenet-val", "ILSVRC2012_img_val"),
        Size(50_000, 1000),
        "https://www.image-net.org/download.php",
        "ImageNet terms of access: non-commercial research and education",
    ),
    "v2": _v2("ImageNet-V2 matched-frequency", "matched-frequency"),
    "r": Origin(
        "ImageNet-R",
        ("imagenet-r", "ImageNet-R"),
        Size(30_000, 200),
        "https://github.com/hendrycks/imagenet-r",
        "not stated by its authors for the images",
        "r",
    ),
    "sketch": Origin(
        "ImageNet-Sketch",
        ("imagenet-sketch/sketch", "imagenet-sketch", "ImageNet-Sketch", "sketch"),
        Size(50_889, 1000),
        "https://github.com/HaohanWang/ImageNet-Sketch",
        "MIT for the repository, not stated for the images",
    ),
    "a": Origin(
        "ImageNet-A",
        ("imagenet-a", "ImageNet-A"),
        Size(7500, 200),
        "https://github.com/hendrycks/natural-adv-examples",
        "MIT for the repository, not stated for the images",
        "a",
    ),
    "objectnet": Origin(
        "ObjectNet",
        ("objectnet-1.0", "objectnet", "ObjectNet"),
        Size(18_574, 113),
        "https://objectnet.dev/download.html",
        "CC BY 4.0 with two clauses: never tune parameters on it; on the web only with its border",
    ),
    "v2-threshold0.7": _v2("ImageNet-V2 threshold 0.7", "threshold0.7"),
    "v2-top-images": _v2("ImageNet-V2 top images", "top-images"),
}

# Beside the published sets these would count V2 more than once: they come only if asked for.
ON_REQUEST = ("v2-threshold0.7", "v2-top-images")

# Clean images of the classes of a set, to hold it against.
CLEAN = {"val on R classes": "r", "val on A classes": "a"}


class Pictures(Dataset[tuple[Tensor, int]]):
    """Picture files with labels.

    Args:
        samples: path and label of each.
        border: pixels to crop from each side before anything else is done.
        preprocess: picture -> uint8 (3, H, W).
    """

    def __init__(self, samples: Samples, border: int, preprocess: Preprocess) -> None:
        self.samples = samples
        self.border = border
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label.

        Raises:
            InputError: the file is no readable image.
        """
        (path, label), border = self.samples[index], self.border
        try:
            with Image.open(path) as file:
                box = (border, border, file.width - border, file.height - border)
                image = file.convert("RGB").crop(box)
        except Exception as error:  # PIL's decoders raise errors of any kind on broken files
            raise InputError(f"Cannot read image {path}: {error}. Replace it.") from error
        return self.preprocess(image), label


@cache
def synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids in the order of the head classes, which is their sorted order."""
    return tuple(_timm_list("imagenet_synsets.txt"))


@cache
def subset(name: str) -> tuple[int, ...]:
    """The 200 head classes of ImageNet-R ("r") or ImageNet-A ("a"), sorted."""
    return tuple(sorted(map(int, _timm_list(f"imagenet_{name}_indices.txt"))))


def imagenet_shifts(request: Request) -> list[Shift]:
    """The sets that lie under `request.data_root`, or the one that is asked for.

    Raises:
        InputError: no such folder, a classifier of other classes, nothing found, an unknown or
            missing set, files or folders that do not belong there, or too few or too many images
            where `request.allow_incomplete` is False.
    """
    root = request.data_root
    if root is None or not root.is_dir():
        raise InputError(f"Expected data_root to be the folder of the ImageNet sets, got {root}.")
    _check_classes(request.class_names)
    if request.only:
        return [_one(request.only, root, request.allow_incomplete)]
    wanted = [name for name in ORIGINS if name not in ON_REQUEST]
    found = [name for name in wanted if _place(name, root)]
    if not found:
        places = ", ".join(ORIGINS[name].places[0] for name in wanted)
        raise InputError(f"Expected ImageNet sets in {root}, such as {places}, but found none.")
    clean = [name for name, of in CLEAN.items() if {"val", of} <= set(found)]
    missing = tuple(f"imagenet/{name}" for name in wanted if name not in found)
    shifts = [_one(name, root, request.allow_incomplete) for name in [*found, *clean]]
    return [replace(shift, missing=missing) for shift in shifts]


def _check_classes(names: Sequence[str]) -> None:
    if len(names) != len(synsets()):
        raise InputError(
            f"Expected a classifier of the {len(synsets())} ImageNet classes for the ImageNet "
            f"sets, but got one of {len(names)} classes."
        )
    if set(names) == set(synsets()) and tuple(names) != synsets():
        raise InputError(
            "Expected the WordNet ids of the classifier in sorted order, as its labels are, but "
            "got another order."
        )


def _one(name: str, root: Path, allow_incomplete: bool) -> Shift:
    """The set of that name, with all its files looked up and counted."""
    if name not in (*ORIGINS, *CLEAN):
        known = [f"imagenet/{other}" for other in (*ORIGINS, *CLEAN)]
        raise unknown("shift", f"imagenet/{name}", known)
    key = "val" if name in CLEAN else name
    origin, folder = ORIGINS[key], _place(key, root)
    if folder is None:
        raise InputError(
            f"Expected {origin.title} in {root}, but none of {', '.join(origin.places)} is there; "
            f"get it from {origin.source}."
        )
    if key == "objectnet":
        shift, samples = _objectnet(folder)
    elif key == "val":
        shift, samples = _val(name, folder, root)
    else:
        shift, samples = _folders(name, folder, origin.subset)
    expected = Size(10_000, 200) if name in CLEAN else origin.expected
    found = Size(len(samples), len({label for _, label in samples}))
    if not samples or (found != expected and not allow_incomplete):
        raise InputError(
            f"Expected {expected.images} images of {expected.classes} classes in {folder}, but "
            f"found {found.images} of {found.classes}; complete it from {origin.source}"
            f"{', or set allow_incomplete' if samples else ''}."
        )
    note = f"{shift.note}; RGB as stored, without EXIF orientation or transparency"
    shift = replace(shift, note=note, source=origin.source, licence=origin.licence)
    return replace(shift, found=found, expected=expected)


def _folders(name: str, folder: Path, restriction: str) -> tuple[Shift, Samples]:
    """V2 by its numbered folders, R, Sketch and A by WordNet ids."""
    numbered = name.startswith("v2")
    classes = subset(restriction) if restriction else range(len(synsets()))
    labels = {str(k) if numbered else synsets()[k]: k for k in classes}
    what = "numbers 0 to 999" if numbered else f"WordNet ids of its {len(labels)} classes"
    samples = _samples(folder, labels, what)
    shift = Shift(
        name,
        partial(Pictures, samples, 0),
        classes=tuple(classes) if restriction else None,
        note=f"label = {'number' if numbered else 'WordNet id'} that names the folder",
    )
    return shift, samples


def _val(name: str, folder: Path, root: Path) -> tuple[Shift, Samples]:
    """ImageNet val, or the images of it whose class is in the subset of R or A."""
    if any(path.is_dir() and path.name != DEVKIT for path in folder.iterdir()):
        labels = {wnid: k for k, wnid in enumerate(synsets())}
        samples, note = _samples(folder, labels, "WordNet ids"), "label = WordNet id of the folder"
    else:
        samples, note = _flat_val(folder, root), "label = ground truth of the ILSVRC2012 devkit"
    classes = subset(CLEAN[name]) if name in CLEAN else None
    if classes is not None:
        allowed = set(classes)
        samples = [(path, label) for path, label in samples if label in allowed]
    shift = Shift(name, partial(Pictures, samples, 0), True, classes, note=note)
    return shift, samples


def _flat_val(folder: Path, root: Path) -> Samples:
    """Samples of the files ILSVRC2012_val_<number>.JPEG; the number is the line of the label."""
    wnids = _val_wnids(folder, root)
    number = {wnid: k for k, wnid in enumerate(synsets())}
    samples = []
    for path in _pictures(folder):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", Path(path).stem)
        if not match:
            raise InputError(
                f"Expected ILSVRC2012_val_*.JPEG or folders by WordNet id in {folder}, but got "
                f"{Path(path).name}."
            )
        index = int(match[1]) - 1
        if not 0 <= index < len(wnids):
            raise InputError(f"Expected a label for {path}, but there are {len(wnids)} labels.")
        if wnids[index] not in number:
            raise InputError(f"Expected {wnids[index]}, the label of {path}, among the 1000 ids.")
        samples.append((path, number[wnids[index]]))
    return samples


def _val_wnids(folder: Path, root: Path) -> list[str]:
    """WordNet ids of the validation images in the order of their numbers.

    They are read from the devkit, whose own class numbers are not the head's, or from the file
    that torchvision's ImageNet makes of it.
    """
    for base in (folder, folder.parent, root):
        data, meta = base / DEVKIT / "data", base / "meta.bin"
        try:
            if data.is_dir():
                return _devkit_wnids(data)
            if meta.is_file():
                return [str(wnid) for wnid in torch.load(meta, weights_only=True)[1]]
        except Exception as error:  # the readers of both formats have errors of their own
            raise InputError(f"Cannot read the labels in {base}: {error!r:.200}.") from error
    raise InputError(
        f"Expected folders by WordNet id in {folder}, or the unpacked {DEVKIT} (or torchvision's "
        f"meta.bin) beside it; get it from {ORIGINS['val'].source}."
    )


def _devkit_wnids(data: Path) -> list[str]:
    from scipy.io import loadmat

    table = loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    truth = (data / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    return [wnid[int(number)] for number in truth]


def _objectnet(folder: Path) -> tuple[Shift, Samples]:
    """Images of the classes that ImageNet has; a label is the number of such a class."""
    overlap, others = _objectnet_classes(folder / "mappings")
    numbers = {name: k for k, name in enumerate(sorted(overlap))}
    samples = _samples(folder / "images", numbers, "ObjectNet folder names", others)
    accepts = {number: overlap[name] for name, number in numbers.items()}
    shift = Shift(
        "objectnet",
        partial(Pictures, samples, BORDER),
        classes=tuple(sorted({k for several in accepts.values() for k in several})),
        accepts=accepts,
        note=f"{BORDER} pixels cropped from each side before resizing",
    )
    return shift, samples


def _objectnet_classes(mappings: Path) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Head classes of the folders that ImageNet has too, and the names of the other folders.

    A folder has an ObjectNet label, that has one or more ImageNet labels joined by "; ", such a
    label stands in one line of a list, and that line's number, from 0, belongs to one head class.
    """
    absent = [name for name in OBJECTNET_FILES if not (mappings / name).is_file()]
    if absent:
        raise InputError(
            f"Expected ObjectNet's own {', '.join(absent)} in {mappings}; get them from "
            f"{ORIGINS['objectnet'].source}."
        )
    try:
        texts = [(mappings / name).read_text(encoding="utf-8") for name in OBJECTNET_FILES]
        folders, several, lines = map(json.loads, texts[:3])
        labels = texts[3].split("\n")
        heads: dict[str, list[int]] = defaultdict(list)
        for head, line in lines.items():
            heads[labels[line].strip()].append(int(head))
        overlap = {
            folder: tuple(sorted(_only(heads[label]) for label in several[name].split("; ")))
            for folder, name in folders.items()
            if name in several
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"Cannot read ObjectNet's classes in {mappings}: {error!r}.") from error
    return overlap, frozenset(folders) - frozenset(overlap)


def _only(heads: Sequence[int]) -> int:
    """The one head class of a label; a label of two ("crane", bird or machine) is refused."""
    (head,) = heads
    return head


def _samples(
    folder: Path, labels: Mapping[str, int], what: str, ignored: frozenset[str] = frozenset()
) -> Samples:
    """Pictures of the class folders; one that is neither in `labels` nor ignored is refused."""
    names = class_folders(folder)
    other = [name for name in names if name not in labels and name not in ignored]
    if other:
        raise InputError(
            f"Expected the folders of {folder} to be {what}, but got {', '.join(other[:8])}"
            f"{', …' if len(other) > 8 else ''}; remove or rename them."
        )
    own = [name for name in names if name in labels]
    return [(path, labels[name]) for name in own for path in _pictures(folder / name)]


def _pictures(folder: Path) -> list[str]:
    """Picture files of a folder, sorted, but for the hidden ones that some archives have."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(str(path) for path in paths if path.suffix.lower() in IMG_EXTENSIONS)


def _place(name: str, root: Path) -> Path | None:
    folders = (root / place for place in ORIGINS[name].places)
    return next((folder for folder in folders if folder.is_dir()), None)


def _timm_list(name: str) -> list[str]:
    return (files("timm") / "data" / "_info" / name).read_text().split()
