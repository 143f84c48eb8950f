"""CNS-Bench: ImageNet's objects under nuisances that grow continuously, for its 1000 classes.

What is read here is `<shift>/<class folder>/<name>.jpeg`, as its released code reads it: the label
is the first number in the name of the class folder; the name of a file splits at underscores, its
second part is the seed of the object and its last, by 1000, the scale. A class and a seed are a
trajectory.

Source: https://github.com/odunkel/CNS-Bench (ICCV 2025).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cfmask.data.file_index import class_folders
from cfmask.errors import InputError, listed
from cfmask.shift import Ladder, Request, Shift
from cfmask.shifts.pictures import Contents, pictures
from cfmask.shifts.published import check_classes

FAMILY, MASKED = "cns", "-masked"
PLACES = ("cns", "CNS-Bench", "cns-bench", "cns_bench")
SOURCE = "https://github.com/odunkel/CNS-Bench; data: doi 10.17617/3.MAGNKP"
# Failure point of an object that is never answered wrong, as the released code has it.
NEVER = 3.0


def cns_shifts(request: Request) -> list[Shift]:
    """Every folder of `data_root/cns` is a set.

    `<name>-masked`, if asked for, takes the argmax among the classes that the set has, as the
    released option `class_mask` does.

    Raises:
        InputError: no such folder, a classifier of other classes, or folders and files whose names
            tell no class, seed or scale.
    """
    check_classes(request.class_names)
    root = request.data_root
    place = next((root / name for name in PLACES if root and (root / name).is_dir()), None)
    if place is None:
        raise InputError(
            f"Expected CNS-Bench in {root}, but none of {listed(PLACES)} is there; get it from "
            f"{SOURCE}."
        )
    names, single = class_folders(place), request.only.removesuffix(MASKED)
    found = [_set(place / name) for name in ([single] if single in names else names)]
    if single in names and request.only != single:
        present = tuple(sorted({label for _, label in found[0].samples}))
        return [replace(found[0], name=request.only, classes=present)]
    return [*found]


def _set(folder: Path) -> Contents:
    samples, trajectories, scales = [], [], []
    for name in class_folders(folder):
        label = _label(folder / name)
        for path in pictures(folder / name):
            seed, scale = _seed_and_scale(path)
            samples.append((path, label))
            trajectories.append(f"{label}/{seed}")
            scales.append(scale)
    if not samples:
        raise InputError(f"Expected images in the class folders of {folder}, but there are none.")
    name = f"{FAMILY}/{folder.name}"
    ladder = Ladder(name, tuple(scales), tuple(trajectories), NEVER)
    note = "label = first number in the name of the folder; scale = last part of the file's name"
    return replace(
        Contents.of(samples, f"{note}, by 1000", ladder=ladder),
        name=folder.name,
        source=SOURCE,
        licence="not stated for the images",
    )


def _label(folder: Path) -> int:
    number = re.search(r"\d+", folder.name)
    if number is None or len(number[0]) > 3:
        raise InputError(
            f"Expected the number of a class, 0 to 999, first in the name of {folder}, but got "
            f"{number[0] if number else 'none'}; leave it out."
        )
    return int(number[0])


def _seed_and_scale(path: str) -> tuple[str, float]:
    """Seed and scale that the name of a file tells."""
    parts = Path(path).stem.split("_")
    if len(parts) < 3 or not re.fullmatch(r"\d{1,6}", parts[-1]):
        raise InputError(
            f"Expected a name such as img_SEED_SCALE.jpeg, scale in thousandths, but got {path}; "
            "rename or remove it."
        )
    return parts[1], int(parts[-1]) / 1000
