"""Sets that must have contexts: trees of class/context; and UrbanCars, whose groups are crossed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from cfmask.data.file_index import class_folders
from cfmask.data.folders import Pictures
from cfmask.decoding import READING
from cfmask.errors import InputError, listed
from cfmask.labels import class_numbers
from cfmask.shift import Request, Shift
from cfmask.shifts.named_folders import folder_shifts
from cfmask.shifts.pictures import Contents, pictures

KINDS = ("urban", "country")
# Share of the training images whose background, and co-occurring object, is that of the class.
RATIO = 0.95
TEST = "bg-0.5_co_occur_obj-0.5"
GROUPS = {
    f"obj-{car}_bg-{ground}_co_occur_obj-{thing}": (car, ground, thing)
    for car, ground, thing in product(KINDS, KINDS, KINDS)
}
URBANCARS_CLASSES = ("urban car", "country car")


def context_shifts(request: Request) -> list[Shift]:
    """The sets of `folder_shifts`, each of which must have groups, but for the reference.

    Raises:
        InputError: a set has none; what `folder_shifts` raises.
    """
    shifts = folder_shifts(request)
    for shift in shifts:
        wanted = request.only in ("", shift.name) and not shift.in_distribution
        if wanted and shift.groups is None:
            raise InputError(
                f"Expected contexts in the set {shift.name}, a folder in each class folder with "
                "all its images (cat/cat(sofa)/1.jpg), but some images have none; move them into "
                "one, or evaluate the set by --shifts folders."
            )
    return shifts


def urbancars_shifts(request: Request) -> list[Shift]:
    """UrbanCars: a car, a background and a co-occurring object, each urban or country.

    `test`; `val` comes only if it is asked for. In training 95 % of the backgrounds and, apart from
    them, 95 % of the objects are those of the car's class; both are balanced in the sets here. The
    eight folders are the groups, called car/background/object.

    Source: Li et al. 2023 (arXiv 2212.04825) and its released code (facebookresearch/Whac-A-Mole).

    Raises:
        InputError: the folders are not there, others are, one of the eight lacks images, or the
            classifier has other classes.
    """
    name = "val" if request.only == "val" else "test"
    return [replace(_urbancars(name, request), name=name)]


def _urbancars(name: str, request: Request) -> Contents:
    root = request.data_root
    if root is None or not root.is_dir():
        raise InputError(f"Expected data_root to be the folder of urbancars/, but got {root}.")
    places = [root / "urbancars" / TEST / name, root / TEST / name]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise InputError(
            f"Expected the images of UrbanCars in {places[0]}, but there is no such folder; make "
            "them by the code of facebookresearch/Whac-A-Mole."
        )
    _check_groups(folder)
    labels = _labels(request)
    lists = [_images(folder / group) for group in GROUPS]
    samples = [
        (path, labels[car]) for paths, (car, _, _) in zip(lists, GROUPS.values()) for path in paths
    ]
    return Contents.of(
        samples,
        f"label = obj- of the folder; groups: car/background/object, {RATIO:.0%} of each tied to "
        f"the class in training; masks are left out; {READING[True]}",
        dataset=partial(Pictures, as_stored=True),
        groups=tuple(k for k, paths in enumerate(lists) for _ in paths),
        group_names=tuple(map("/".join, GROUPS.values())),
        training_shares=tuple(_share(*facts) for facts in GROUPS.values()),
        absent=tuple(_absent(*facts) for facts in GROUPS.values()),
        source="https://github.com/facebookresearch/Whac-A-Mole",
        licence="code CC BY-NC 4.0; made of Stanford Cars, Places and LVIS",
    )


def _share(car: str, ground: str, thing: str) -> float:
    tied = (RATIO if other == car else 1 - RATIO for other in (ground, thing))
    return next(tied) * next(tied) / len(KINDS)


def _absent(car: str, ground: str, thing: str) -> str:
    return "+".join(["BG"] * (ground != car) + ["CoObj"] * (thing != car))


def _check_groups(folder: Path) -> None:
    found = class_folders(folder)
    other = [name for name in found if name not in GROUPS]
    if other:
        raise InputError(
            f"Expected folders such as {next(iter(GROUPS))} in {folder}, but got {listed(other)}; "
            "remove or rename them."
        )
    gone = [name for name in GROUPS if name not in found or not _images(folder / name)]
    if gone:
        raise InputError(
            f"Expected images of all {len(GROUPS)} groups in {folder}, but there are none in "
            f"{listed(gone)}; complete the set."
        )


def _images(folder: Path) -> list[str]:
    """Images of a group without the masks that lie beside them."""
    return [path for path in pictures(folder) if not re.search(r"_mask\.png$", path)]


def _labels(request: Request) -> dict[str, int]:
    """Number of the class of each kind of car, called `urban` or `urban car`."""
    names = request.class_names
    found = {}
    for kind in KINDS:
        either = [class_numbers([name], names, "UrbanCars")[0] for name in (kind, f"{kind} car")]
        number = next((k for k in either if k is not None), None)
        if number is None:
            raise InputError(
                f"Expected a classifier of {' and '.join(URBANCARS_CLASSES)}, but got one of "
                f"{listed(names)}."
            )
        found[kind] = number
    return found
