"""Shift: what an evaluation set is, and the request by which sets are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from cfmask.errors import InputError
from cfmask.images import Preprocess

# Share of the images of a folder without `train/` that is held out for testing.
HOLDOUT = 0.2
# Label of an image for which no class of the head is right.
UNKNOWN = -1


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
class Ladder:
    """Where the images of a set stand on a ladder: one object at rising scales of a nuisance.

    Several sets may be steps of one ladder. See `cfmask.evaluation.ladders`.

    Attributes:
        name: of the ladder, `family/nuisance`; that of the set if it holds all of it.
        scales: of each image, in the order of the dataset, or one of all; none is negative.
        trajectories: name of the trajectory of each image, which has every scale once; None where
            the place in the dataset tells it.
        beyond: what a trajectory without a wrong answer counts as, above all scales.
        clean: name of the set that is scale 0, if the ladder has none of its own. Without
            `trajectories` it has the same images in the same order.

    Raises:
        InputError: another number of trajectories than of scales, a scale that is negative or not
            below `beyond`.
    """

    name: str
    scales: tuple[float, ...] | float
    trajectories: tuple[str, ...] | None = None
    beyond: float = 6.0
    clean: str = ""

    def __post_init__(self) -> None:
        several = self.scales if isinstance(self.scales, tuple) else None
        if several and self.trajectories and len(several) != len(self.trajectories):
            raise InputError(
                f"Expected a scale and a trajectory for each image of {self.name}, but got "
                f"{len(several)} and {len(self.trajectories)}."
            )
        wrong = [scale for scale in self.steps if not 0 <= scale < self.beyond]
        if wrong:
            raise InputError(
                f"Expected scales of {self.name} from 0 to below {self.beyond:g}, but got "
                f"{wrong[0]:g}."
            )

    @property
    def steps(self) -> tuple[float, ...]:
        """The scales, each once, rising."""
        several = self.scales if isinstance(self.scales, tuple) else (self.scales,)
        return tuple(sorted(set(several)))

    @property
    def images(self) -> int | None:
        """Number of images that it tells of; None for any."""
        known = [part for part in (self.trajectories, self.scales) if isinstance(part, tuple)]
        return len(known[0]) if known else None


@dataclass(frozen=True)
class Shift:
    """One evaluation set.

    Attributes:
        name: `family/name`, as `find_shifts` gives it: all figures of the set stand under it. A
            set made by hand may have any name.
        load: preprocessing -> dataset of images uint8 (3, H, W) with labels; one that cannot be
            read raises `UnreadableImage`.
        in_distribution: True for the reference set that the others are compared with, and for other
            clean sets; they are in no mean.
        classes: classes of the head among which the argmax is taken; None for all.
        accepts: for a set whose labels are not classes of the head: label -> classes of the head
            that are right; None where the label itself is the one right class.
        found: size of the set on disk, where it is known before the images are read.
        expected: the published size.
        note: how images and labels are read, for the reader of a report.
        source: where to get the set.
        licence: of the set, as its authors state it.
        missing: names of the sets that were asked for with this one but are not there.
        groups: number of the group of each image, in the order of the dataset, for worst-group
            accuracy; None if the set has no groups.
        group_names: names of the groups by number.
        training_shares: share of each group among the images of training, by number, of sum 1;
            empty where it is not known.
        absent: the shortcut of training that each group lacks, by number, such as "BG" for a
            background that goes with the class; empty for a group that lacks none.
        unknown: True for images of classes that the head lacks: all labels are `UNKNOWN`, there is
            no accuracy, and the set is in no mean; see `cfmask.evaluation.novelty`.
        ladder: the scale and trajectory of each image; a set of several scales is in no mean.
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
    training_shares: tuple[float, ...] = ()
    absent: tuple[str, ...] = ()
    part_of: str = ""
    unknown: bool = False
    ladder: Ladder | None = None

    def __post_init__(self) -> None:
        if self.unknown:
            object.__setattr__(self, "accepts", {UNKNOWN: ()})

    @property
    def averaged(self) -> bool:
        """Whether the set is in the mean of shifts."""
        several = self.ladder is not None and len(self.ladder.steps) > 1
        return not (self.in_distribution or self.part_of or self.unknown or several)


@dataclass(frozen=True)
class Request:
    """What a family of sets is given to make them.

    Attributes:
        data_root: folder with the images; None for built-in sets.
        class_names: of the classifier, in the order of the labels.
        images: number of images of each built-in set.
        seed: of built-in sets.
        allow_incomplete: True evaluates sets whose number of images is not the published one; the
            report says so.
        only: the one set of the family that is wanted; empty for all. `find_shifts` fills it in.
        holdout: share of the images of a `data_root` without `train/` that is the set `id`.
        held_out: paths below `data_root` of the images that a run has held out as that set; empty
            chooses them anew.
        unknown: folders or import paths of images of unknown classes, each a further set.
        corrupt: corruptions of the first set in distribution, each five further sets.
    """

    data_root: Path | None = None
    class_names: Sequence[str] = ()
    images: int = 1000
    seed: int = 0
    allow_incomplete: bool = False
    only: str = ""
    holdout: float = HOLDOUT
    held_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_root", local_folder(self.data_root))


def local_folder(root: str | os.PathLike[str] | None) -> Path | None:
    """A data root as a path; None for None and for an empty text.

    Raises:
        InputError: it is a URL.
    """
    if "://" in str(root):
        raise InputError(
            f"Expected data_root to be a folder on this machine, but got {root}; fetch the set "
            "first: shards into DATA_ROOT/<name of the set>."
        )
    return Path(root) if root else None


def check_apart(folder: Path, root: Path | None, shifts: Sequence[str] = ("folders",)) -> None:
    """Refuse a folder for results among images of one's own, where it would be taken for a class.

    Args:
        folder: for the results.
        root: of the images.
        shifts: sets that are asked for; only those of folders take all that lies below the root.

    Raises:
        InputError: it lies there.
    """
    taken = any(name.partition("/")[0] in ("folders", "contexts") for name in shifts)
    if root and taken and folder.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"Expected a folder for results outside of {root}, where it would be taken for images, "
            f"but got {folder}; give another."
        )


def qualified(family: str, name: str) -> str:
    """The name of a set in reports, and what `--shifts` takes for it."""
    return f"{family}/{name}"
