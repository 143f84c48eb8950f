"""Origin: what is known of a published set, and how its files become a shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from cfmask.data.images import Preprocess
from cfmask.data.pictures import Pictures, Samples
from cfmask.data.shifts import Shift, Size
from cfmask.errors import InputError

MakeDataset = Callable[[Samples, Preprocess], Dataset[tuple[Tensor, int]]]


@dataclass(frozen=True)
class Contents:
    """What lies in the folder of a set, and the rule to judge by.

    Attributes:
        samples: path and label of each image.
        note: how labels and images are read.
        labels: label by the name of its class folder, for all classes that the set should have.
        classes: classes of the head among which the argmax is taken; None for all.
        accepts: label -> classes of the head that are right, where labels are not the head's.
        dataset: makes images of the samples.
        complaint: what does not belong there, in one line; empty if all is well.
        groups: number of the group of each image; None if the set has no groups.
        group_names: names of the groups by number.
        size: of what was found, where labels do not stand for classes; counted if None.
    """

    samples: Samples
    note: str
    labels: Mapping[str, int]
    classes: tuple[int, ...] | None = None
    accepts: Mapping[int, tuple[int, ...]] | None = None
    dataset: MakeDataset = Pictures
    complaint: str = ""
    groups: tuple[int, ...] | None = None
    group_names: tuple[str, ...] = ()
    size: Size | None = None

    @property
    def found(self) -> Size:
        """Number of images, and of classes that have images."""
        return self.size or Size(len(self.samples), len({label for _, label in self.samples}))


@dataclass(frozen=True)
class Origin:
    """What is known of a set before its files are looked at.

    Attributes:
        title: as its authors call it.
        places: folders in which it may lie under the data root; the first that is there is taken.
        expected: its full size; None if its authors do not state it.
        source: where to get it.
        licence: as its authors state it.
        read: folder and data root -> contents.
        in_distribution: True for clean sets.
        on_request: True for a set that comes only if it is asked for by its own name.
        beside: name of a set without which this one does not come with the family.
        made_of: name of the set whose files these are, if they are not its own.
        part_of: name of the collection of which this set is one of many.
        each: number of images of every class, where it is the same for all; else 0.
    """

    title: str
    places: tuple[str, ...]
    expected: Size | None
    source: str
    licence: str
    read: Callable[[Path, Path], Contents]
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

    def shift(self, name: str, root: Path, allow_incomplete: bool) -> Shift:
        """The set with all its files looked up and counted.

        Args:
            name: of the set in reports.
            root: the data root.
            allow_incomplete: True for a set of another size than the published one.

        Raises:
            InputError: the set is not there, holds what does not belong there, or has another
                size.
        """
        folder = self.place(root)
        if folder is None:
            raise InputError(
                f"Expected {self.title} in {root}, but none of {', '.join(self.places)} is there; "
                f"get it from {self.source}. What is there: python eval.py --check --data_root "
                f"{root}"
            )
        contents = self.read(folder, root)
        if contents.complaint:
            raise InputError(contents.complaint)
        self._refuse_another_size(contents, folder, allow_incomplete)
        return Shift(
            name,
            partial(contents.dataset, contents.samples),
            self.in_distribution,
            contents.classes,
            contents.accepts,
            found=contents.found,
            expected=self.expected,
            note=contents.note,
            source=self.source,
            licence=self.licence,
            groups=contents.groups,
            group_names=contents.group_names,
            part_of=self.part_of,
        )

    def _refuse_another_size(
        self, contents: Contents, folder: Path, allow_incomplete: bool
    ) -> None:
        found, expected = contents.found, self.expected or contents.found
        if not contents.samples or (found != expected and not allow_incomplete):
            raise InputError(
                f"Expected {expected.images or 'some'} images of {expected.classes or 'known'} "
                f"classes in {folder}, but found {found.images} of {found.classes}; complete it "
                f"from {self.source}{', or set allow_incomplete' if contents.samples else ''}."
            )
