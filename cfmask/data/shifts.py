"""Shifts: every evaluation set with its label rule.

An entry of `SHIFTS` makes the sets of one family. A new family is one function and one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from cfmask.data import digits
from cfmask.data.combinations import COMBINATIONS as COMBINATIONS
from cfmask.data.combinations import Combination as Combination
from cfmask.data.combinations import mean_of as mean_of
from cfmask.data.datamodule import digits_tensors
from cfmask.data.images import Preprocess
from cfmask.errors import InputError, unknown


@dataclass(frozen=True)
class Size:
    """How large a set is.

    Attributes:
        images: number of images.
        classes: number of classes that have images.
    """

    images: int
    classes: int


@dataclass(frozen=True)
class Shift:
    """One evaluation set.

    Attributes:
        name: as it stands in reports.
        load: preprocessing -> dataset of images uint8 (3, H, W) with labels.
        in_distribution: True for the reference set that the others are held against, and for other
            clean sets; they are in no mean.
        classes: classes of the head among which the argmax is taken; None for all.
        accepts: for a set whose labels are not classes of the head: label -> classes of the head
            that are right; None where the label itself is the one right class.
        found: size of what is there, for sets of a published size.
        expected: the published size.
        note: what else a reader must know of how images and labels are read.
        source: where to get the set.
        licence: of the set, as its authors state it.
        missing: names of the sets that were asked for with this one but are not there.
        groups: number of the group of each image, in the order of the dataset, for worst-group
            accuracy; None if the set has no groups.
        group_names: names of the groups by number.
        part_of: name of the collection of which this set is one of many ("c" for a corruption at
            one severity); tables then show the collection's combinations alone.
    """

    name: str
    load: Callable[[Preprocess], Dataset[tuple[Tensor, int]]]
    in_distribution: bool = False
    classes: tuple[int, ...] | None = None
    accepts: Mapping[int, tuple[int, ...]] | None = None
    found: Size | None = None
    expected: Size | None = None
    note: str = ""
    source: str = ""
    licence: str = ""
    missing: tuple[str, ...] = ()
    groups: tuple[int, ...] | None = None
    group_names: tuple[str, ...] = ()
    part_of: str = ""


@dataclass(frozen=True)
class Request:
    """What a family needs to know to make its sets.

    Attributes:
        data_root: folder with the images; None for built-in sets.
        class_names: of the classifier, in the order of the labels.
        images: number of images of each built-in set.
        seed: of built-in sets.
        allow_incomplete: True evaluates sets whose number of images is not the published one; the
            report says so.
        only: the one set of the family that is wanted; empty for all. `find_shifts` fills it in.
    """

    data_root: Path | None = None
    class_names: Sequence[str] = ()
    images: int = 1000
    seed: int = 0
    allow_incomplete: bool = False
    only: str = ""


def digits_shifts(request: Request) -> list[Shift]:
    """The digits world. In all sets but `id` the background does not give the class away."""
    if tuple(request.class_names) != digits.CLASS_NAMES:
        raise InputError(
            f"Expected a classifier of {', '.join(digits.CLASS_NAMES[:3])}, … for the digits, but "
            f"got one of {len(request.class_names)} other classes."
        )

    def load(name: str, preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        return digits_tensors(name, request.images, request.seed, preprocess.size)

    names = ("id", "v2", "counter", "sketch", "rendition", "corruption")
    size, note = Size(request.images, min(10, request.images)), f"drawn with seed {request.seed}"
    return [Shift(name, partial(load, name), name == "id", found=size, note=note) for name in names]


def named_folders(request: Request) -> list[Shift]:
    """Sets of the user's own: see `cfmask.data.named_folders`."""
    # That module builds on this one, so it cannot be imported above.
    from cfmask.data.named_folders import folder_shifts

    return folder_shifts(request)


def published(family: str, request: Request) -> list[Shift]:
    """Sets of ImageNet classes, those that are there: see `cfmask.data.published`."""
    # That module builds on this one, so it cannot be imported above.
    from cfmask.data.published import published_shifts

    return published_shifts(family, request)


PUBLISHED_FAMILIES = (
    "imagenet",
    "imagenet-c",
    "imagenet-c-made",
    "counteranimal",
    "imagenet-9",
    "imagenet-w",
    "imagenet-x",
    "imagenet-e",
    "dollarstreet",
)

SHIFTS: dict[str, Callable[[Request], list[Shift]]] = {
    "digits": digits_shifts,
    "folders": named_folders,
    **{family: partial(published, family) for family in PUBLISHED_FAMILIES},
}


def is_asked_for(single: str, name: str, family: str) -> bool:
    """True if a set is meant by what stands behind the slash of `family/single`.

    That is the set's name, or its name less the name of the family (`counteranimal/common`); a
    beginning up to a dash stands for all that go on (`imagenet-c/fog`).
    """
    begins = name.startswith(f"{family}-{single}-")
    return single in ("", name) or name == f"{family}-{single}" or begins


def find_shifts(names: Sequence[str], request: Request) -> list[Shift]:
    """Sets by name: a family (`digits`) or some of it (`digits/sketch`), each set once.

    Raises:
        InputError: an unknown name (the nearest are named), sets whose images are not there, or
            sets of two families that have the same name.
    """
    found: dict[str, tuple[str, Shift]] = {}
    for name in names:
        family, _, single = name.partition("/")
        if family not in SHIFTS:
            raise unknown("shift", name, SHIFTS)
        shifts = SHIFTS[family](replace(request, only=single))
        chosen = [shift for shift in shifts if is_asked_for(single, shift.name, family)]
        if not chosen:
            raise unknown("shift", name, [f"{family}/{shift.name}" for shift in shifts])
        for shift in chosen:
            owner, _ = found.setdefault(shift.name, (family, shift))
            if owner != family:
                raise InputError(
                    f"Expected sets of different names, but {owner} and {family} both have a set "
                    f"{shift.name!r}; evaluate them apart."
                )
    return [shift for _, shift in found.values()]
