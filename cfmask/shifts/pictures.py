"""Picture files with labels, in the folders of the published sets.

They are decoded as for published results: as RGB, with neither EXIF orientation nor transparency
applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from cfmask.data.file_index import class_folders, entries
from cfmask.data.folders import Pictures
from cfmask.decoding import ENDINGS, extent, read_image, stored_size
from cfmask.errors import InputError, listed
from cfmask.images import Preprocess, as_bytes
from cfmask.shift import Shift, Size

Samples = list[tuple[str, int]]
MakeDataset = Callable[[Samples, Preprocess], Dataset[tuple[Tensor, int]]]


class AsStored(Pictures):
    """Picture files that were cropped to the classifier's size when the set was made.

    They are neither resized nor cropped again, which would cut off part of the object.

    Args:
        samples: path and label of each.
        preprocess: that of the classifier, of which only size and decoder are used.

    Raises:
        InputError: the first image is not of the classifier's size.
    """

    def __init__(self, samples: Samples, preprocess: Preprocess) -> None:
        super().__init__(samples, preprocess)
        # A classifier of another size would have every image refused, one by one.
        for path, _ in samples[:1]:
            self._refuse_another_size(path, stored_size(path) or preprocess.size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label.

        Raises:
            UnreadableImage: the file is no readable image.
            InputError: it is of another size than the classifier's.
        """
        path, label = self.samples[index]
        image = read_image(path, self.preprocess.decoder, as_stored=True)
        self._refuse_another_size(path, extent(image))
        return as_bytes(image), label

    def _refuse_another_size(self, path: str, size: tuple[int, int]) -> None:
        if size != self.preprocess.size:
            (high, wide), (height, width) = size, self.preprocess.size
            raise InputError(
                f"Expected {path} to be {width} x {height} pixels, as the classifier takes them, "
                f"because its set is evaluated as stored, but got {wide} x {high}; "
                "evaluate a classifier of that size."
            )


@dataclass(frozen=True)
class Contents(Shift):
    """A set of picture files, listed and labelled.

    Attributes:
        found: number of images, and of classes that have images.
        samples: path and label of each image.
        labels: label by the name of its class folder, for all classes that the set should have;
            empty for a set without class folders.
        complaint: what does not belong there, in one line; empty if nothing.
    """

    found: Size = field(default_factory=lambda: Size(0, 0))
    samples: Samples = field(default_factory=list, repr=False)
    labels: Mapping[str, int] = field(default_factory=dict, repr=False)
    complaint: str = ""

    @classmethod
    def of(
        cls, samples: Samples, note: str, dataset: MakeDataset = Pictures, **facts: Any
    ) -> Contents:
        """A set without a name, counted.

        Args:
            samples: path and label of each image.
            note: see `Shift`.
            dataset: makes images of the samples.
            facts: further attributes, by name.
        """
        made = cls("", partial(dataset, samples), note=note, samples=samples, **facts)
        present = {label for _, label in samples}
        if made.accepts is not None and not made.labels:
            present = {k for label in present for k in made.accepts[label]}
        return replace(made, found=Size(len(samples), len(present)))

    @classmethod
    def of_folders(
        cls,
        folder: Path,
        labels: Mapping[str, int],
        what: str,
        note: str,
        ignored: frozenset[str] = frozenset(),
        **facts: Any,
    ) -> Contents:
        """Pictures of the class folders in a folder, labelled by the name of theirs.

        Args:
            folder: of the class folders.
            labels: label by the name of the class folder.
            what: what these names are, for the complaint.
            note: see `Shift`.
            ignored: names of folders that are neither read nor complained about.
            facts: as for `of`.

        Raises:
            InputError: no such folder, or no folder in it.
        """
        names = class_folders(folder)
        samples = [
            (path, labels[name])
            for name in names
            if name in labels
            for path in pictures(folder / name)
        ]
        other = [name for name in names if name not in labels and name not in ignored]
        complaint = (
            f"Expected the folders of {folder} to be {what}, but got {listed(other)}; remove or "
            "rename them."
        )
        return cls.of(samples, note, labels=labels, complaint=complaint if other else "", **facts)


def pictures(folder: Path) -> list[str]:
    """Picture files of a folder, sorted, without hidden ones.

    Raises:
        InputError: the folder cannot be listed.
    """
    names = (name for name, is_folder in entries(folder).items() if not is_folder)
    return sorted(str(folder / name) for name in names if name.lower().endswith(ENDINGS))
