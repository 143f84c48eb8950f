"""Picture files with labels, and folders of them: one folder a class."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cfmask.data.file_index import FileIndex
from cfmask.decoding import Picture, read_image
from cfmask.errors import InputError
from cfmask.images import Crop, Preprocess

# To ask for the size of every file of a large folder takes minutes on a network disk.
SIZED = 20_000


class Pictures(Dataset[tuple[Tensor, int]]):
    """Picture files with labels.

    Args:
        samples: path and label of each.
        preprocess: picture -> uint8 (3, H, W).
        border: pixels to crop from each side before anything else is done.
        as_stored: leave EXIF rotation and transparency alone, see `cfmask.decoding.decode`.
        crop: augmentation, in place of the preprocessing's resizing and cropping.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        preprocess: Preprocess,
        border: int = 0,
        as_stored: bool = True,
        crop: Crop | None = None,
    ) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.border = border
        self.as_stored = as_stored
        self.crop = crop

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label.

        Raises:
            UnreadableImage: the file is no readable image.
        """
        picture, label = self.picture(index)
        look = self.preprocess
        return self.crop(picture, look) if self.crop else look(picture), label

    def picture(self, index: int) -> tuple[Picture, int]:
        """The picture as it was decoded, and its label."""
        (path, label), look = self.samples[index], self.preprocess
        return read_image(path, look.decoder, self.as_stored, self.border, look.misfit), label


class Folder(Pictures):
    """Images of a folder with one subfolder a class.

    Args:
        root: the folder.
        preprocess: picture -> uint8 (3, H, W).
        classes: names of the class folders in the order of the labels; the default is their sorted
            order. Folders of this set may be fewer, never others.
        crop: augmentation, in place of the preprocessing's resizing and cropping.
        index: of the folder, where it is known already.
        as_stored: leave EXIF rotation and transparency alone, see `cfmask.decoding.decode`.

    Attributes:
        labels: int64 (N,).

    Raises:
        InputError: no folder, no class folders, a class without images, a class that is not among
            `classes`.
    """

    def __init__(
        self,
        root: str | Path,
        preprocess: Preprocess,
        classes: Sequence[str] | None = None,
        crop: Crop | None = None,
        index: FileIndex | None = None,
        as_stored: bool = False,
    ) -> None:
        self.root = Path(root)
        self.index = index or FileIndex.of(self.root)
        self.classes = list(classes) if classes is not None else list(self.index.classes)
        numbers = {name: k for k, name in enumerate(self.classes)}
        other = [name for name in self.index.classes if name not in numbers]
        if other:
            raise InputError(
                f"Expected the classes of {self.root} among those of training "
                f"({', '.join(self.classes[:8])}{', …' if len(self.classes) > 8 else ''}), but got "
                f"{', '.join(other[:8])}; rename or remove these folders."
            )
        own = torch.tensor([numbers[name] for name in self.index.classes])
        self.labels = own[torch.from_numpy(self.index.owners)]
        super().__init__(_Listed(self.index, self.labels), preprocess, 0, as_stored, crop)

    def identity(self) -> Iterator[bytes]:
        """Names of all files with their labels, and the sizes of at most `SIZED` of them."""
        yield self.index.files.tobytes()
        yield self.labels.numpy().tobytes()
        for k in range(min(SIZED, len(self))):
            path = self.index.path(k * (len(self) - 1) // max(1, min(SIZED, len(self)) - 1))
            with contextlib.suppress(OSError):
                yield repr(os.stat(path).st_size).encode()


class _Listed(Sequence[tuple[str, int]]):
    """Path and label of each file of an index, made when they are asked for: there are millions."""

    def __init__(self, index: FileIndex, labels: Tensor) -> None:
        self.files = index
        self.labels = labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.files.path(index), int(self.labels[index])


def split(
    train: Dataset[tuple[Tensor, int]],
    plain: Dataset[tuple[Tensor, int]],
    labels: Tensor,
    wanted: float,
    seed: int,
    usable: Tensor | None = None,
) -> tuple[Subset[tuple[Tensor, int]], Subset[tuple[Tensor, int]]]:
    """Training images, and some held out of them in proportion to the classes.

    Args:
        train: all images, as training sees them.
        plain: the same images, as validation sees them.
        labels: int64 (N,), theirs.
        wanted: how many to hold out; below 1 it is the share of them.
        seed: of the choice.
        usable: int64 (M,), numbers of the images that take part; None for all.
    """
    usable = torch.arange(len(labels)) if usable is None else usable
    count = wanted if wanted >= 1 else wanted * len(usable)
    kept, held = hold_out(labels[usable], round(count), seed)
    return subset_of(train, usable[kept]), subset_of(plain, usable[held])


def subset_of(images: Dataset[tuple[Tensor, int]], numbers: Tensor) -> Subset[tuple[Tensor, int]]:
    """Those of the images that have these numbers, int64 (M,)."""
    # As an array: every process that reads would copy a list of a million numbers.
    return Subset(images, numbers.numpy())  # type: ignore[arg-type]


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that every class is held out in proportion.

    Args:
        labels: int64 (N,).
        count: how many to hold out, in [1, N - 1]; the shares of the
            classes are rounded so that exactly `count` come out.
        seed: of the choice.

    Returns:
        Indices kept and indices held out, both int64 and sorted.
    """
    if not 0 < count < len(labels):
        raise InputError(
            f"Expected to hold out 1 to {len(labels) - 1} of {len(labels)} images, but got {count}."
        )
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=rng)
    sizes = labels.bincount()
    # Largest remainder: every class gives its share, rounded up or down.
    quota, rest = sizes * count // len(labels), sizes * count % len(labels)
    most = (rest + torch.rand(len(sizes), generator=rng)).argsort(descending=True)
    quota[most[: count - int(quota.sum())]] += 1
    by_class = order[labels[order].argsort(stable=True)]
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_class[place < quota.repeat_interleave(sizes)]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
