"""Hold-out: a folder without `train/` -> its classes, its test sets, and the test set `id` of it.

    photos/lemon/*.jpg      photos/sketches/lemon/*.png
    photos/lime/*.jpg       photos/sketches/lime/*.png

A folder with pictures directly in it is a class. One without, whose folders are called as classes,
or hold only such folders, is a test set; so is one with shards or a list of images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfmask.data.file_index import FileIndex, class_folders, entries
from cfmask.data.folders import hold_out
from cfmask.data.shard_index import has_shards
from cfmask.decoding import ENDINGS
from cfmask.errors import InputError
from cfmask.labels import class_numbers

HELD_OUT = "id"
# What is held out depends on the folder alone, so that all runs are tested on the same images.
SEED = 0
# Names of the parts of a divided folder.
TAKEN = ("train", "val", "test", HELD_OUT)
# Lists of images: a folder with one is a test set, wherever its pictures lie.
LISTS = ("metadata.csv", "index.csv")


@dataclass(frozen=True)
class Undivided:
    """A folder with class folders in it, and no `train/`.

    Attributes:
        root: the folder.
        classes: names of the class folders, sorted.
        sets: names of the folders of test sets, sorted.
    """

    root: Path
    classes: tuple[str, ...]
    sets: tuple[str, ...]

    def index(self) -> FileIndex:
        """The pictures of all classes."""
        return FileIndex.of(self.root, self.classes)

    def divided(
        self, index: FileIndex, share: float, known: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor]:
        """Pictures to train on, and those that are held out of training, in proportion.

        Args:
            index: of all pictures.
            share: of them to hold out, in (0, 1).
            known: paths below the folder that a run has held out, which are held out again; if
                none of them is here, the folder is another than the run's.

        Returns:
            Numbers int64 of pictures in the index, both sorted.

        Raises:
            InputError: another share, or only some of the known pictures are here.
        """
        if not 0 < share < 1:
            raise InputError(f"Expected a share to hold out above 0 and below 1, but got {share}.")
        wanted = {os.fsencode(path) for path in known}
        held = torch.tensor([bytes(file) in wanted for file in index.files], dtype=torch.bool)
        if not held.any():
            return hold_out(torch.from_numpy(index.owners), round(share * len(index)), SEED)
        gone = wanted - {bytes(file) for file in index.files[held.numpy()]}
        if gone:
            raise InputError(
                f"Expected the {len(wanted)} images that the run held out in {self.root}, but "
                f"{len(gone)} are gone, such as {os.fsdecode(min(gone))}; put them back."
            )
        return (~held).nonzero().flatten(), held.nonzero().flatten()


def undivided(root: Path) -> Undivided | None:
    """The parts of a folder whose classes lie directly in it; None if it is divided otherwise.

    Raises:
        InputError: a folder that is neither a class nor a test set, or a name that is taken.
    """
    if not root.is_dir() or (root / "train").is_dir() or _lists(root):
        return None
    names = class_folders(root)
    classes = [name for name in names if _has_pictures(root / name)]
    if not classes:
        return None
    sets = [name for name in names if name not in classes]
    for name in {HELD_OUT, *set(TAKEN) & set(classes)} & set(names):
        raise InputError(
            f"Expected class folders directly in {root}, as it has no train/, but {name} stands "
            "for a part of a folder that is divided; rename it, or move the classes into train/."
        )
    odd = [name for name in sets if not _is_set(root / name, classes)]
    if odd:
        raise InputError(
            f"Expected every folder of {root}, which has no train/, to hold pictures, as a class, "
            f"or folders called as the classes, as a test set, but {odd[0]} does neither; move "
            "it, or move the classes into train/."
        )
    return Undivided(root, tuple(classes), tuple(sets))


def _lists(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LISTS)


def _has_pictures(folder: Path) -> bool:
    kinds = entries(folder)
    return not _lists(folder) and any(
        not is_folder and name.lower().endswith(ENDINGS) for name, is_folder in kinds.items()
    )


def _is_set(folder: Path, classes: Sequence[str], groups: bool = True) -> bool:
    """Whether folders in a folder are called as classes, or groups of such; or it has shards."""
    inner = sorted(name for name, is_folder in entries(folder).items() if is_folder)
    if _lists(folder) or has_shards(folder):
        return True
    if inner and None not in class_numbers(inner, classes, str(folder)):
        return True
    return groups and bool(inner) and all(_is_set(folder / n, classes, False) for n in inner)
