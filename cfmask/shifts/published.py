"""Published sets: those of a family that lie under a data root."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cfmask.errors import InputError, listed, unknown
from cfmask.shift import Ladder, Request, Shift, qualified
from cfmask.shifts.attributes import IMAGENET_E, IMAGENET_X
from cfmask.shifts.backgrounds import COUNTERANIMAL, IMAGENET_9
from cfmask.shifts.combinations import COLLECTIONS, corruption_sets
from cfmask.shifts.dollarstreet import DOLLAR_STREET
from cfmask.shifts.imagenet import IMAGENET
from cfmask.shifts.imagenet_c import IMAGENET_C, IMAGENET_C_MADE
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import Contents
from cfmask.shifts.watermark import IMAGENET_W
from cfmask.wordnet import synsets

# The sets of each family, by their name within it.
PUBLISHED: dict[str, dict[str, Origin]] = {
    "imagenet": IMAGENET,
    "imagenet-c": IMAGENET_C,
    "imagenet-c-made": IMAGENET_C_MADE,
    "counteranimal": COUNTERANIMAL,
    "imagenet-9": IMAGENET_9,
    "imagenet-w": IMAGENET_W,
    "imagenet-x": IMAGENET_X,
    "imagenet-e": IMAGENET_E,
    "dollarstreet": DOLLAR_STREET,
}
# Families in which sets of one beginning belong together.
BY_BEGINNING = (*COLLECTIONS, "imagenet-w")


def published_shifts(family: str, request: Request) -> list[Shift]:
    """The sets of a family that lie under `request.data_root`, or those that are asked for.

    Raises:
        InputError: no such folder, a classifier of other classes, nothing found, an unknown or
            missing set, files or folders that do not belong there, or too few or too many images
            where `request.allow_incomplete` is False.
    """
    root, origins = request.data_root, PUBLISHED[family]
    if root is None or not root.is_dir():
        raise InputError(f"Expected data_root to be the folder of the ImageNet sets, got {root}.")
    check_classes(request.class_names)
    found, missing = _asked(family, request.only) if request.only else _there(family, root)
    shifts = [origins[name].shift(name, root, request.allow_incomplete) for name in found]
    there = {qualified(family, name) for name in found}
    # Sets of a collection that is not all there stand for themselves.
    alone = {s.part_of for s in shifts if not set(corruption_sets(s.part_of)) <= there}
    return [
        replace(
            shift,
            missing=missing,
            part_of="" if shift.part_of in alone else shift.part_of,
            ladder=_ladder(shift, family) if shift.part_of else None,
        )
        for shift in shifts
    ]


def _ladder(shift: Contents, family: str) -> Ladder:
    """Where a corruption at one severity stands.

    A stored image is told by its label and file name; those made here are val's, in its order.
    """
    name, _, severity = shift.name.rpartition("-")
    stored = family != "imagenet-c-made"
    # The severities share the text of a name.
    told = (sys.intern(f"{label}/{os.path.basename(path)}") for path, label in shift.samples)
    trajectories = tuple(told) if stored else None
    return Ladder(qualified(family, name), float(severity), trajectories, clean="imagenet/val")


def is_asked_for(single: str, name: str, family: str) -> bool:
    """Whether `family/single` names a set.

    `single` is the set's name within the family, empty for all of it, or in some families the part
    of its name before a dash (`imagenet-c/fog`).
    """
    begins = family in BY_BEGINNING and name.startswith(f"{single}-")
    return single in ("", name) or begins


def _asked(family: str, single: str) -> tuple[list[str], tuple[str, ...]]:
    """Names of the sets that `single` stands for, and of missing ones, which are none."""
    names = [name for name in PUBLISHED[family] if is_asked_for(single, name, family)]
    if not names:
        known = [qualified(family, name) for name in PUBLISHED[family]]
        raise unknown("shift", f"{family}/{single}", known)
    return names, ()


def _there(family: str, root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of the family's sets that are there, and of those that are missing."""
    origins = PUBLISHED[family]
    wanted = {name: origin for name, origin in origins.items() if not origin.on_request}
    there = [name for name, origin in wanted.items() if origin.place(root)]
    found = [name for name in there if not wanted[name].beside or wanted[name].beside in there]
    if not found:
        places = list(dict.fromkeys(origin.places[0] for origin in wanted.values()))
        raise InputError(
            f"Expected sets of {family} in {root}, such as {listed(places, 6)}, but found none. "
            f"What is there: python eval.py --check --data_root {root}"
        )
    own = [name for name, origin in wanted.items() if not origin.made_of]
    return found, tuple(qualified(family, name) for name in own if name not in found)


def check_classes(names: Sequence[str]) -> None:
    """Refuse a classifier of other classes than ImageNet's 1000, or of another order.

    Raises:
        InputError: it is one.
    """
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
