"""Training data: what all kinds of it share, and the built-in digits world.

Batches are images float (B, 3, H, W) in [0, 1] and labels int64 (B,). Images cross to the device as
bytes and become floats there. How they are resized and cropped is the classifier's own
preprocessing, the same for training and evaluation.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypedDict, get_args

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cfmask import digits, processes
from cfmask.data.epochs import EpochLoader, EpochSampler, Seeded, run_seed, start_worker
from cfmask.data.unreadable import Skipping, Unreadable
from cfmask.decoding import Decoder
from cfmask.errors import InputError, at_least, check_seed, unknown
from cfmask.images import Preprocess, RandomCrop, augmented, check_unit, to_unit
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
        check_seed(seed)
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
        """Load the sets, once, as a classifier takes them; training calls it if need be."""
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
        tied: probability in [0, 1] of the background that is tied to the class; 0.1 makes it tell
            nothing.
        mark: probability in [0, 1] of the colour that is tied to the class, of a mark in a corner,
            which is a second shortcut (`digits-marked`); None has no mark.
        opacity: range of the digit's opacity in [0, 1]; the fainter, the more a shortcut pays.
        label_noise: share in [0, 1] of the training labels that are replaced by another class.

    Raises:
        InputError: a value outside of these.
    """

    class_names = digits.CLASS_NAMES

    def __init__(
        self,
        train_images: int = 1024,
        val_images: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
        tied: float = 0.95,
        mark: float | None = None,
        opacity: tuple[float, float] = (0.3, 0.7),
        label_noise: float = 0.0,
    ) -> None:
        super().__init__(batch_size, workers=0, seed=seed)
        self.train_images = train_images
        self.val_images = val_images
        given = {"tied": (tied,), "mark": (mark or 0,), "opacity": opacity}
        for name, values in (given | {"label_noise": (label_noise,)}).items():
            if not all(0 <= value <= 1 for value in values) or list(values) != sorted(values):
                shown = " to ".join(f"{value:g}" for value in values)
                raise InputError(f"Expected {name} in [0, 1], ranges ascending, but got {shown}.")
        self.law: dict[str, Any] = {"tied": tied, "mark": mark, "opacity": tuple(opacity)}
        self.label_noise = label_noise

    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """See `TrainingData.load`."""
        counts = {"train": self.train_images, "val": self.val_images}
        train, val = (
            digits_tensors(name, count, self.seed, preprocess.size, **self.law)
            for name, count in counts.items()
        )
        if self.label_noise:
            train.labels = _noisy(train.labels, self.label_noise, self.seed)
        return train, val


def _noisy(labels: Tensor, share: float, seed: int) -> Tensor:
    """Labels (N,), the rounded share of which is replaced by one of the other classes."""
    rng = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=rng)[: round(share * len(labels))]
    classes = len(digits.CLASS_NAMES)
    shift = torch.randint(1, classes, (len(wrong),), generator=rng)
    noisy = labels.clone()
    noisy[wrong] = (noisy[wrong] + shift) % classes
    return noisy


def digits_tensors(
    name: str, count: int, seed: int, size: tuple[int, int], world: str = "digits", **law: Any
) -> Tensors:
    """A set of a digits world at the size that the encoder takes; `law` changes its `Sampling`."""
    if count < 1:
        raise InputError(f"Expected at least 1 image of the digits world, but got {count}.")
    drawn = digits.digit_set(name, count, seed, world, **law)
    return Tensors(resized(drawn.images, size), drawn.labels)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images uint8 (N, 3, S, S) of the digits world at the size (H, W)."""
    if size == (digits.SIZE, digits.SIZE):
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
