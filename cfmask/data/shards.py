"""Training data in tar shards: WebDataset's layout, on the disk or fetched to it first.

Shards on the disk are read at the places that the index names, so that everything holds that holds
for folders: one permutation of all images an epoch, every image once, the same order on any number
of devices and workers, and a run that can go on anywhere. Shards behind a URL are fetched whole
into a folder, once, by the `webdataset` library; so the disk must have room for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import Unpack

from cfmask import wordnet
from cfmask.data.datamodule import Loading, Sample, TrainingData
from cfmask.data.folder_data import named, refuse_one_class
from cfmask.data.folders import Pictures, split
from cfmask.data.shard_fetch import expand, fetch
from cfmask.data.shard_index import INDEX, ShardIndex
from cfmask.decoding import READING, Picture, decode
from cfmask.errors import InputError, UnreadableImage
from cfmask.images import Crop, Preprocess


class ShardImages(Pictures):
    """Images of shards on the disk, in the order of the index.

    Args:
        index: of the shards.
        preprocess: picture -> uint8 (3, H, W).
        crop: augmentation, in place of the preprocessing's resizing and cropping.
        as_stored: leave EXIF rotation and transparency alone, see `cfmask.decoding.decode`.
    """

    def __init__(
        self,
        index: ShardIndex,
        preprocess: Preprocess,
        crop: Crop | None = None,
        as_stored: bool = False,
    ) -> None:
        super().__init__((), preprocess, 0, as_stored, crop)
        self.index = index
        self.labels = index.labels
        sizes = [len(shard) for shard in index.shards]
        self.owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        columns = [(s.offsets, s.sizes) for s in index.shards]
        self.offsets, self.sizes = (
            np.concatenate([np.array(column[k], dtype=np.int64) for column in columns])
            for k in (0, 1)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> tuple[Picture, int]:
        """See `Pictures.picture`; of an image that cannot be read, shard and byte are named."""
        (data, name), look = self.data(index), self.preprocess
        picture = decode(data, name, look.decoder, self.as_stored, misfit=look.misfit)
        return picture, int(self.labels[index])

    @property
    def shard_files(self) -> list[Path]:
        """The tar files."""
        return [self.index.folder / shard.name for shard in self.index.shards]

    def identity(self) -> Iterator[bytes]:
        """Names, sizes and checksums of all shards, and the labels."""
        yield repr([(s.name, s.bytes, s.sha256) for s in self.index.shards]).encode()
        yield np.asarray(self.labels).tobytes()

    def data(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image file, and what to call it."""
        path = self.index.folder / self.index.shards[self.owners[index]].name
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        name = f"at byte {offset} of shard {path}"
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(f"Cannot read image {name}: {error.strerror}.") from error
        return data, name


class ShardData(TrainingData):
    """Images in tar shards: the WebDataset layout, packed by `cfmask pack` or others.

    They are brought upright or read as stored as those of `FolderData`, by the same rule.

    Args:
        shards: folder with index.json; or tar files with braces, `data/shard-{000000..000146}.tar`;
            or a URL of either kind (http, https, s3, gs; needs the `shards` extra).
        class_names: names by label, for shards without index.json; or name of a class by its name
            in the index, for prompts; or `imagenet` for OpenAI's names by WordNet id.
        val_shards: shards to choose the epoch by, as for `shards`; None holds images out.
        val_images: how many to hold out, stratified; below 1 it is the share of them.
        cache: folder for shards behind a URL.
        **loading: see `TrainingData`. `cfmask pack DIR --verify true` finds all unreadable images
            before.
    """

    def __init__(
        self,
        shards: str,
        class_names: list[str] | Mapping[str, str] | Literal["imagenet"] | None = None,
        val_shards: str | None = None,
        val_images: float = 0.1,
        cache: str = "fetched",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.val_images = val_images
        self.index = find_shards(os.fspath(shards), Path(cache))
        self.val_index = find_shards(os.fspath(val_shards), Path(cache)) if val_shards else None
        if isinstance(class_names, list):
            refuse_one_class(class_names, "class_names")
            self.class_names = tuple(class_names)
            known = (wordnet.synsets(), wordnet.class_names()) if len(class_names) == 1000 else ()
            self.as_stored = self.class_names in known
        else:
            self.class_names = named(self._classes(), class_names, str(self.index.folder))
            self.as_stored = wordnet.is_imagenet(self._classes())
        self.reading = READING[self.as_stored]
        for index in filter(None, (self.index, self.val_index)):
            index.check_labels(len(self.class_names))

    def _classes(self) -> Sequence[str]:
        if not self.index.classes:
            raise InputError(
                f"Expected class_names for shards without {INDEX}, but got none; give the names by "
                "label."
            )
        if self.val_index and self.val_index.classes not in ((), self.index.classes):
            raise InputError("Expected val_shards of the same classes, but got others.")
        return self.index.classes

    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """See `TrainingData.load`."""
        train = ShardImages(self.index, preprocess, self.crop, self.as_stored)
        if self.val_index:
            return train, ShardImages(self.val_index, preprocess, None, self.as_stored)
        plain = ShardImages(self.index, preprocess, None, self.as_stored)
        return split(train, plain, train.labels, self.val_images, self.seed)


def find_shards(where: str, cache: Path) -> ShardIndex:
    """The index of shards; those behind a URL are fetched.

    Args:
        where: see `ShardData`.
        cache: folder for what is fetched.

    Raises:
        InputError: there are none, or they cannot be fetched or read.
    """
    if "://" in where:
        return fetch(where, cache)
    place = Path(where)
    paths = [] if place.is_dir() else [Path(path) for path in expand(where)]
    folders = {path.parent for path in paths} or {place}
    if not place.is_dir() and (len(folders) > 1 or not (paths[0].parent / INDEX).is_file()):
        return ShardIndex.scanned(paths)
    index = ShardIndex.load(folders.pop())
    index = index.only([path.name for path in paths]) if paths else index
    _check_sizes(index)
    return index


def shards_in(folder: Path) -> ShardIndex | None:
    """The index of the shards in a folder; None if there are none.

    Raises:
        InputError: they cannot be read.
    """
    if (folder / INDEX).is_file():
        return find_shards(str(folder), folder)
    files = sorted(folder.glob("*.tar"))
    return ShardIndex.scanned(files) if files else None


def _check_sizes(index: ShardIndex) -> None:
    """Refuse shards that are not there or not whole; checksums are for `cfmask pack --verify`."""
    for shard in index.shards:
        path = index.folder / shard.name
        size = path.stat().st_size if path.is_file() else -1
        if size != shard.bytes:
            what = "it is not there" if size < 0 else f"it has {size}"
            raise InputError(
                f"Expected shard {path} of {shard.bytes} bytes, but {what}; copy it again."
            )
