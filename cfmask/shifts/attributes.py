"""Sets whose images are grouped by what is unusual in them: ImageNet-X and ImageNet-E."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

from cfmask.data.file_index import class_folders
from cfmask.errors import InputError
from cfmask.files import read_text
from cfmask.shifts import imagenet_val
from cfmask.shifts.imagenet_val import AS_STORED, all_pictures
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import Contents, pictures
from cfmask.wordnet import synsets

X_SOURCE = "https://github.com/facebookresearch/imagenetx"
X_FACTORS = "imagenet_x_val_top_factor.jsonl"
X_PROTOTYPES = "prototypical_paths.csv"
FACTORS = (
    "pose",
    "background",
    "pattern",
    "color",
    "smaller",
    "shape",
    "partial_view",
    "subcategory",
    "texture",
    "larger",
    "darker",
    "object_blocking",
    "person_blocking",
    "style",
    "brighter",
    "multiple_objects",
)
E_SOURCE = "https://github.com/alibaba/easyrobust"
E_LABELS = "labels.txt"
E_ORIGINAL = "ori"


def imagenet_x(folder: Path, root: Path) -> Contents:
    """Val, grouped by the factor in which an image differs most from the prototypes of its class.

    Labels and factors come from the annotations; the prototypes are left out, as in the authors'
    code (Idrissi et al., 2023).

    Raises:
        InputError: the annotations are not there or damaged.
    """
    facts = _annotations(root)
    images = {Path(path).name: path for path in all_pictures(folder)}
    here = sorted(name for name in facts if name in images)
    return Contents.of(
        [(images[name], facts[name][0]) for name in here],
        f"labels and factors by {X_FACTORS}, prototypes left out; groups: top factor; {AS_STORED}",
        groups=tuple(facts[name][1] for name in here),
        group_names=(*FACTORS, "no factor"),
    )


def _annotations(root: Path) -> dict[str, tuple[int, int]]:
    """Head class and index of the top factor by file name, without the prototypes."""
    bases = (root / "imagenet-x", root / "imagenet_x", root)
    home = next((base for base in bases if (base / X_FACTORS).is_file()), None)
    if home is None or not (home / X_PROTOTYPES).is_file():
        raise InputError(
            f"Expected {X_FACTORS} and {X_PROTOTYPES} in {bases[0]}; get them from {X_SOURCE} "
            "(imagenet_x/annotations)."
        )
    try:
        with (home / X_PROTOTYPES).open(encoding="utf-8") as file:
            prototypes = {row["file_name"] for row in csv.DictReader(file)}
        rows = map(json.loads, read_text(home / X_FACTORS).splitlines())
        facts = {row["file_name"]: (_head_class(row["class"]), _top(row)) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"Cannot read the annotations in {home}: {error!r:.200}.") from error
    return {name: fact for name, fact in facts.items() if name not in prototypes}


def _head_class(number: int) -> int:
    if not 0 <= number < len(synsets()):
        raise ValueError(f"class {number} is none of 1000")
    return int(number)


def _top(row: dict[str, int]) -> int:
    """Index of the annotated factor; one past the last if there is none."""
    return next((k for k, factor in enumerate(FACTORS) if row[factor]), len(FACTORS))


def imagenet_e(folder: Path, root: Path, edited: bool) -> Contents:
    """The original images, or all edited ones, grouped by the folder of their edit.

    Labels come from the set's own list; an edited image is named as its original (Li et al., CVPR
    2023).

    Raises:
        InputError: no list of labels, or an image that is not in it.
    """
    labels = _edit_labels(folder / E_LABELS)
    kinds = [name for name in class_folders(folder) if (name != E_ORIGINAL) == edited]
    if not kinds:
        raise InputError(
            f"Expected the original images in {folder / E_ORIGINAL} and edited ones beside it; "
            f"get them from {E_SOURCE}."
        )
    found = [(path, k) for k, kind in enumerate(kinds) for path in pictures(folder / kind)]
    if lone := [path for path, _ in found if Path(path).stem not in labels]:
        raise InputError(
            f"Expected a label for {lone[0]} in {folder / E_LABELS}; remove the image."
        )
    return Contents.of(
        [(path, labels[Path(path).stem]) for path, _ in found],
        f"labels by {E_LABELS}; groups: folder of the edit; {AS_STORED}",
        groups=tuple(k for _, k in found),
        group_names=tuple(kinds),
    )


def _edit_labels(file: Path) -> dict[str, int]:
    """Head class by file name without suffix; the lines are name, tab, number."""
    try:
        lines = [line.split("\t") for line in read_text(file).splitlines() if line.strip()]
        return {Path(name).stem: _head_class(int(number)) for name, number in lines}
    except (OSError, ValueError) as error:
        raise InputError(
            f"Expected lines of image name, tab and class number in {file}, but: {error}; get it "
            f"from {E_SOURCE}."
        ) from error


IMAGENET_X = {
    "imagenet-x": imagenet_val.of_val(
        "ImageNet-X",
        None,
        imagenet_x,
        X_SOURCE,
        f"images: {imagenet_val.LICENCE}",
        in_distribution=True,
    )
}
IMAGENET_E = {
    kind: Origin(
        f"ImageNet-E, {kind} images",
        ("imagenet-e", "ImageNet-E", "imagenet_e"),
        None,
        E_SOURCE,
        "not stated by its authors; made of ImageNet's images",
        partial(imagenet_e, edited=kind == "edited"),
        in_distribution=kind == "original",
    )
    for kind in ("original", "edited")
}
