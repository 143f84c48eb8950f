"""Origin: the facts of a published set, and how its files become a `Shift`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfmask.errors import InputError, listed
from cfmask.shift import Size
from cfmask.shifts.pictures import Contents
from cfmask.wordnet import synsets

# Folder of a set and data root -> contents.
ReadContents = Callable[[Path, Path], Contents]


def several_classes(
    right: Sequence[tuple[int, ...]],
) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    """Labels for images of which one or more head classes are right.

    Returns the label of each image, and the head classes of each label; one class is its own label.
    """
    number: dict[tuple[int, ...], int] = {(k,): k for k in range(len(synsets()))}
    labels = [number.setdefault(classes, len(number)) for classes in right]
    return labels, dict(zip(labels, right))


@dataclass(frozen=True)
class Origin:
    """The facts of a set, known before its files are listed.

    Attributes:
        title: as its authors call it.
        places: its possible folders under the data root; the first that exists is taken.
        expected: its full size; None if its authors do not state it, with 0 classes if they state
            the number of images alone.
        source: where to get it.
        licence: as its authors state it.
        read: lists and labels the files.
        in_distribution: True for clean sets.
        on_request: True for a set that is evaluated only if it is named, not with its family.
        beside: name of a set without which this one is left out of the family.
        made_of: name of the set whose files it uses, if it has none of its own.
        part_of: name of the collection that it belongs to.
        each: number of images of every class, where it is the same for all; else 0.
    """

    title: str
    places: tuple[str, ...]
    expected: Size | None
    source: str
    licence: str
    read: ReadContents
    in_distribution: bool = False
    on_request: bool = False
    beside: str = ""
    made_of: str = ""
    part_of: str = ""
    each: int = 0

    def place(self, root: Path) -> Path | None:
        """The folder of the set under the data root; None if it is not there."""
        folders = (root / place for place in self.places)
        return next((folder for folder in folders if folder.is_dir()), None)

    def shift(self, name: str, root: Path, allow_incomplete: bool) -> Contents:
        """The set under a name, with all its files listed and counted.

        Raises:
            InputError: the set is not there, holds what does not belong there, or has another size
                than the published one, unless `allow_incomplete`.
        """
        folder = self.place(root)
        if folder is None:
            raise InputError(
                f"Expected {self.title} in {root}, but none of {listed(self.places, 6)} is there; "
                f"get it from {self.source}. What is there: python eval.py --check --data_root "
                f"{root}"
            )
        contents = self.read(folder, root)
        if contents.complaint:
            raise InputError(contents.complaint)
        found = contents.found
        expected = self.expected and replace(
            self.expected, classes=self.expected.classes or found.classes
        )
        if not contents.samples or (found != (expected or found) and not allow_incomplete):
            size = expected and f"{expected.images} images of {expected.classes} classes"
            or_set = ", or set allow_incomplete" if found.images else ""
            raise InputError(
                f"Expected {size or 'images'} in {folder}, but found {found.images} of "
                f"{found.classes}; complete it from {self.source}{or_set}."
            )
        return replace(
            contents,
            name=name,
            in_distribution=self.in_distribution,
            expected=expected,
            source=self.source,
            licence=self.licence,
            part_of=self.part_of,
        )
