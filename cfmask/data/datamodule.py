"""Training data: image folders of one's own, or the built-in digits world.

Batches are images float (B, 3, H, W) in [0, 1] and labels int64 (B,). Images cross to the device as
bytes and become floats there. How they are resized and cropped is the classifier's own
preprocessing, the same for training and evaluation.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from typing_extensions import Unpack

from cfmask import digits, processes, wordnet
from cfmask.data.epochs import EpochLoader, EpochSampler, Seeded, run_seed, start_worker
from cfmask.data.file_index import FileIndex, class_folders
from cfmask.data.folders import Folder, split, subset_of
from cfmask.data.holdout import HELD_OUT, undivided
from cfmask.data.unreadable import Skipping, Unreadable, refuse_unreadable
from cfmask.decoding import READING, Decoder
from cfmask.errors import InputError, at_least, unknown
from cfmask.images import Preprocess, RandomCrop, augmented, check_unit, to_unit
from cfmask.shift import HOLDOUT
from cfmask.signatures import spell_out

Sample = tuple[Tensor, int]


class Loading(TypedDict, total=False):
    """What `TrainingData` takes, for `**loading: Unpack[Loading]`."""

    batch_size: int
    workers: int
    seed: int
    decoder: Decoder
    crop: RandomCrop | None
    unreadable: Unreadable
    augmentation: torch.nn.Module | list[torch.nn.Module] | None


class TrainingData(pl.LightningDataModule, ABC):
    """Training images, and in-distribution images held out of them for choosing the epoch.

    Args:
        batch_size: images a step.
        workers: processes that read images.
        decoder: "fast", or "pil" for exactly the pixels of Pillow, slower.
        unreadable: `stop` ends the run at an image that cannot be read; `skip` takes the next one
            and counts them.
        seed: of the hold-out.
        crop: augmentation of training images; None trains on what is evaluated.
        augmentation: one transform of the training pictures or several, before crop and resizing:
            any of `torchvision.transforms.v2`, or a module of one's own, uint8 (3, H, W) -> uint8.

    Attributes:
        class_names: K names, in the order of the labels.
        reading: how image files are read, for the run's summary; empty where there are none.
        skipped: after training, a line for each image that could not be read and was skipped.
    """

    class_names: tuple[str, ...]
    reading = ""

    def __init__(
        self,
        batch_size: int = 64,
        workers: int = 2,
        decoder: Decoder = "fast",
        unreadable: Unreadable = "stop",
        seed: int = 0,
        crop: RandomCrop | None = None,
        augmentation: torch.nn.Module | list[torch.nn.Module] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size, "images a step (batch_size)")
        at_least(0, workers, "workers")
        if unreadable not in get_args(Unreadable):
            raise unknown("choice of unreadable", unreadable, ("stop", "skip"))
        self.decoder = decoder
        self.unreadable = unreadable
        self.skipped: list[str] = []
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.crop = augmented(augmentation, crop)
        self.train_set: Dataset[Sample] | None = None
        self.val_set: Dataset[Sample] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """A constructor that ends in `**loading` shows its parent's arguments by name."""
        super().__init_subclass__(**options)
        spell_out(cls)

    @abstractmethod
    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """Training and validation sets of images uint8 (3, H, W) with labels."""

    def prepare(self, preprocess: Preprocess) -> None:
        """Load the sets, once, as a classifier wants them. Training calls it if nobody has."""
        if self.train_set is None:
            sets = self.load(replace(preprocess, decoder=self.decoder))
            skips = self.unreadable == "skip"
            self.train_set, self.val_set = (Skipping(data) if skips else data for data in sets)

    def identity(self) -> dict[str, Any]:
        """Identity of the images, as JSON holds it; the sets must be loaded.

        Names and numbers, and a checksum of what `identity` of the sets gives, if they have it, or
        else of their labels.
        """
        digest = hashlib.sha256()
        for part in (self.train_set, self.val_set):
            for facts in _identity(part):
                digest.update(facts)
        return {
            "classes": list(self.class_names),
            "train": f"{len(self.train_set)} images to train on",  # type: ignore[arg-type]
            "val": f"{len(self.val_set)} images held out",  # type: ignore[arg-type]
            "files": digest.hexdigest(),
        }

    def setup(self, stage: str) -> None:
        """Load the sets as the classifier in training wants them."""
        method: Any = self.trainer.lightning_module if self.trainer else None
        self.prepare(method.classifier.preprocess if method else Preprocess())

    def skips(self) -> int:
        """Number of images that this process has skipped so far."""
        return sum(int(data.skipped.sum()) for data in self._skipping())

    def teardown(self, stage: str) -> None:
        """Collect what all processes have skipped."""
        if stage == "fit" and self._skipping():
            lines = [line for data in self._skipping() for line in data.complaints()]
            self.skipped = sorted(
                {line for part in processes.gathered(lambda: lines) for line in part}
            )
            if self.skipped:
                rank_zero_warn(f"{len(self.skipped)} unreadable images were skipped.")

    def _skipping(self) -> list[Skipping]:
        return [data for data in (self.train_set, self.val_set) if isinstance(data, Skipping)]

    def train_dataloader(self) -> DataLoader[Sample]:
        """Training batches; order and augmentation depend on the seed and the epoch alone."""
        assert self.train_set is not None, "setup was not called"
        seed, trainer = run_seed(), self.trainer
        data = Seeded(self.train_set, seed)
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = EpochSampler(len(data), self.batch_size, seed, rank, world)
        # Lightning sets the epoch too, but after workers began to read.
        sampler.set_epoch(trainer.current_epoch if trainer else 0)
        return self._loader(data, sampler=sampler)

    def drawn(self, images: int) -> DataLoader[Sample]:
        """This process's share of so many training images, drawn and made as the first epoch's."""
        assert self.train_set is not None, "prepare was not called"
        data = Seeded(self.train_set, run_seed())
        order = EpochSampler(len(data), 1, run_seed()).order()[:images]
        own = processes.own_part(len(order))
        return self._loader(Subset(data, order[own.start : own.stop].tolist()))

    def val_dataloader(self) -> DataLoader[Sample]:
        """Validation batches, in the order of the set."""
        assert self.val_set is not None, "setup was not called"
        return self._loader(self.val_set)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at images that come as floats while they are in main memory.

        Raises:
            InputError: values outside of [0, 1].
        """
        if batch[0].dtype != torch.uint8:
            check_unit(batch[0], values=True)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to floats in [0, 1], on the device."""
        images, labels = batch
        return to_unit(images), labels

    def _loader(self, data: Dataset[Sample], **options: Any) -> EpochLoader:
        return EpochLoader(
            data,
            self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=start_worker,
            # From pinned memory a copy to a GPU goes on beside the step.
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def _identity(data: Any) -> Iterator[bytes]:
    """Bytes that identify a set, in pieces."""
    yield repr(len(data)).encode()
    if isinstance(data, Skipping):
        yield from _identity(data.data)
    elif isinstance(data, Subset):
        yield np.asarray(data.indices, dtype=np.int64).tobytes()
        yield from _identity(data.dataset)
    elif hasattr(data, "identity"):
        yield from data.identity()
    elif hasattr(data, "labels"):
        yield np.asarray(data.labels).tobytes()


class Tensors(Dataset[Sample]):
    """Images uint8 (N, 3, H, W) and labels int64 (N,) in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 (3, H, W) and its label."""
        return self.images[index], int(self.labels[index])


class DigitsData(TrainingData):
    """The digits world: the background gives the class away in 95 % of the training images.

    Args:
        train_images: number of training images, at least 2.
        val_images: number of validation images, drawn in the same way.
        batch_size: images a step.
        seed: of the images.
    """

    class_names = digits.CLASS_NAMES

    def __init__(
        self, train_images: int = 1024, val_images: int = 1000, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__(batch_size, workers=0, seed=seed)
        self.train_images = train_images
        self.val_images = val_images

    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """See `TrainingData.load`."""
        return (
            digits_tensors("train", self.train_images, self.seed, preprocess.size),
            digits_tensors("val", self.val_images, self.seed, preprocess.size),
        )


class FolderData(TrainingData):
    """Images in folders: `root/train/<class>/*`, and `root/val/<class>/*` if it exists.

    Without `train/` the classes lie directly in `root`, and a part of each is held out as the test
    set `id`; see `cfmask.data.holdout`.

    Images are brought upright, as `folders` are evaluated, but for those in all 1000 folders of
    ImageNet, which are read as stored, as its sets are evaluated.

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


def digits_tensors(name: str, count: int, seed: int, size: tuple[int, int]) -> Tensors:
    """A set of the digits world at the size that the encoder takes."""
    if count < 1:
        raise InputError(f"Expected at least 1 image of the digits world, but got {count}.")
    drawn = digits.digit_set(name, count, seed)
    images = drawn.images
    if size != (digits.SIZE, digits.SIZE):
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    return Tensors(images, drawn.labels)
