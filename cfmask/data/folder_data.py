"""Training images in class folders, and the names of their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Unpack

from cfmask import wordnet
from cfmask.data.datamodule import Loading, Sample, TrainingData
from cfmask.data.file_index import FileIndex, class_folders
from cfmask.data.folders import Folder, split, subset_of
from cfmask.data.holdout import HELD_OUT, undivided
from cfmask.data.unreadable import refuse_unreadable
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.images import Preprocess
from cfmask.shift import HOLDOUT


class FolderData(TrainingData):
    """Images in folders: `root/train/<class>/*`, and `root/val/<class>/*` if it exists.

    Without `train/` the classes lie directly in `root`, and a part of each is held out as the test
    set `id`; see `cfmask.data.holdout`.

    Images are brought upright, as in the evaluation of `folders`. Those in the 1000 folders of
    ImageNet are read as stored, as in the evaluation of its sets.

    Args:
        root: folder with `train/`, or with class folders. Further folders beside it are for
            evaluation, not read here.
        class_names: name of a class by its folder, for prompts, where it is not the folder's own;
            or `imagenet` for OpenAI's names of the 1000 classes, whose folders are WordNet ids.
        val_images: how many training images to hold out, stratified, to choose the epoch by; below
            1 it is the share of them. None takes `root/val`, or holds out a tenth where there is
            none.
        holdout: share of the images of a `root` without `train/` that is the test set `id`.
        **loading: see `TrainingData`. With `unreadable: stop` all files are looked at before
            training, and those that cannot be read are named.

    Attributes:
        held_out: paths below `root` of these images, once they are loaded.
    """

    held_out: tuple[str, ...] = ()

    def __init__(
        self,
        root: str,
        class_names: Mapping[str, str] | Literal["imagenet"] | None = None,
        val_images: float | None = None,
        holdout: float = HOLDOUT,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.root = Path(root)
        self.holdout = holdout
        self.undivided = undivided(self.root)
        self.train_root = self.root if self.undivided else self.root / "train"
        self.val_images = val_images
        found = self.undivided
        self.folders = list(found.classes) if found else class_folders(self.train_root)
        self.class_names = named(self.folders, class_names, str(self.train_root))
        self.as_stored = wordnet.is_imagenet(self.folders)
        self.reading = READING[self.as_stored]

    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """See `TrainingData.load`."""
        stored = self.as_stored
        index = self.undivided.index() if self.undivided else None
        train = Folder(self.train_root, preprocess, self.folders, self.crop, index, stored)
        self._look_at(train.index, preprocess)
        usable = self._usable(train)
        if self.val_images is None and (self.root / "val").is_dir():
            val = Folder(self.root / "val", preprocess, self.folders, as_stored=stored)
            self._look_at(val.index, preprocess)
            return (subset_of(train, usable) if self.undivided else train), val
        wanted = 0.1 if self.val_images is None else self.val_images
        plain = Folder(train.root, preprocess, self.folders, None, train.index, stored)
        return split(train, plain, train.labels, wanted, self.seed, usable)

    def _usable(self, train: Folder) -> Tensor:
        """Numbers int64 of the images that may be trained on or validated with."""
        if self.undivided is None:
            return torch.arange(len(train))
        usable, tested = self.undivided.divided(train.index, self.holdout)
        self.held_out = tuple(os.fsdecode(bytes(train.index.files[k])) for k in tested)
        self.reading = (
            f"{len(tested):,} are held out as the test set {HELD_OUT}, as {self.root} has no "
            f"train/; {READING[self.as_stored]}"
        )
        return usable

    def identity(self) -> dict[str, Any]:
        """See `TrainingData.identity`."""
        held_out = {"held out": list(self.held_out)} if self.held_out else {}
        return super().identity() | held_out

    @rank_zero_only
    def _look_at(self, index: FileIndex, preprocess: Preprocess) -> None:
        """Refuse unreadable images, in the first process alone and once for a large folder."""
        if self.unreadable != "skip" and not index.sound:
            paths = [index.path(i) for i in range(len(index))]
            refuse_unreadable(paths, self.workers, progress=True, misfit=preprocess.misfit)
            replace(index, sound=True).keep()


def named(
    folders: Sequence[str], names: Mapping[str, str] | Literal["imagenet"] | None, where: str
) -> tuple[str, ...]:
    """Class names in the order of the folders; a folder without one keeps its own.

    Args:
        folders: names of the class folders.
        names: name of a class by its folder; or `imagenet` for OpenAI's names by WordNet id.
        where: the folders lie, for messages.

    Raises:
        InputError: a single folder, names for folders that are not there, or other folders than
            ImageNet's.
    """
    given = _imagenet_names(folders, where) if names == "imagenet" else names or {}
    other = sorted(set(given) - set(folders))
    if other:
        raise InputError(
            f"Expected class_names for folders of {where}, but got {', '.join(other[:8])}, which "
            "are none of them."
        )
    refuse_one_class(folders, where)
    return tuple(given.get(folder, folder.replace("_", " ")) for folder in folders)


def refuse_one_class(names: Sequence[str], where: str) -> None:
    """Refuse classes that leave nothing to tell apart.

    Raises:
        InputError: there are fewer than two.
    """
    if len(names) < 2:
        raise InputError(
            f"Expected at least 2 classes in {where}, but got {len(names)}"
            f"{''.join(f' ({name})' for name in names)}; add the folder of another."
        )


def _imagenet_names(folders: Sequence[str], where: str) -> dict[str, str]:
    """OpenAI's class names by WordNet id, for exactly the 1000 folders of ImageNet."""
    if tuple(folders) != wordnet.synsets():
        odd = sorted(set(folders) ^ set(wordnet.synsets()))
        raise InputError(
            f"Expected the 1000 ImageNet classes as WordNet ids in {where}, but got "
            f"{len(folders)} folders; missing or not of them: {', '.join(odd[:4])}."
        )
    return dict(zip(folders, wordnet.class_names()))
