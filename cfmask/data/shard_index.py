"""ShardIndex: where every image lies in tar shards of the WebDataset layout.

A shard is a plain tar file. An image and the number of its class are two members of the same name
with different endings: `000012.jpg` and `000012.cls`. Beside the shards lies `index.json`, written
by `cfmask pack`, with the class names, a checksum of every shard and the place of every
image; for other shards the places are found by reading the headers. Nothing is ever extracted.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from cfmask.decoding import ENDINGS
from cfmask.errors import InputError
from cfmask.files import read_json, write_text

INDEX = "index.json"
FORMAT = "cfmask shards 1"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: of the file.
        bytes: its size.
        sha256: its checksum; empty if it is not known.
        labels: class of each image.
        offsets: byte at which each image begins.
        sizes: bytes of each image.
    """

    name: str
    bytes: int
    sha256: str
    labels: list[int]
    offsets: list[int]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a set.

    Attributes:
        folder: where they lie.
        classes: names of the classes by label; empty if they are not known.
        shards: the tar files.
    """

    folder: Path
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def labels(self) -> Tensor:
        """Class of every image, int64 (N,)."""
        return torch.tensor([label for shard in self.shards for label in shard.labels])

    def only(self, names: Sequence[str]) -> ShardIndex:
        """The index of some of the shards.

        Raises:
            InputError: a shard that is not in the index.
        """
        known = {shard.name: shard for shard in self.shards}
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(
                f"Expected shards of {self.folder / INDEX}, but got {', '.join(missing[:4])}; "
                "pack the folder again or leave them out."
            )
        return ShardIndex(self.folder, self.classes, tuple(known[name] for name in names))

    def save(self, folder: Path) -> None:
        """Write index.json."""
        counts = self.labels.bincount(minlength=len(self.classes)).tolist()
        content = {
            "format": FORMAT,
            "images": len(self),
            "classes": list(self.classes),
            "class_counts": counts,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_text(folder / INDEX, json.dumps(content))

    @classmethod
    def load(cls, folder: Path, file: Path | None = None) -> ShardIndex:
        """Read index.json.

        Args:
            folder: of the shards.
            file: the index, if it has not got its name in the folder yet.

        Raises:
            InputError: it is not there, or is no index.
        """
        file = file or folder / INDEX
        if not file.is_file():
            raise InputError(f"Expected {INDEX} in {folder}; write it with cfmask pack.")
        try:
            content = read_json(file)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}")
            shards = tuple(_checked(entry) for entry in content["shards"])
            classes = tuple(map(str, content["classes"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"Expected an index of shards, but {file} is none ({error!r}); pack the folder "
                "again."
            ) from error
        index = cls(folder, classes, shards)
        index.check_labels(len(classes))
        return index

    @classmethod
    def scanned(cls, paths: Sequence[Path]) -> ShardIndex:
        """Find the images of shards that have no index by their tar headers.

        Raises:
            InputError: no shard, no tar file, a member that leaves the shard, an image without a
                class.
        """
        if not paths or not all(path.is_file() for path in paths):
            missing = [str(path) for path in paths if not path.is_file()]
            raise InputError(f"Expected tar shards, but {', '.join(missing[:4])} do not exist.")
        folder = paths[0].parent
        if any(path.parent != folder for path in paths):
            raise InputError("Expected all shards in one folder, but got several; move them.")
        return cls(folder, (), tuple(scan(path) for path in paths))

    def check_labels(self, classes: int) -> None:
        """Refuse labels outside the classes.

        Raises:
            InputError: naming the first such shard.
        """
        for shard in self.shards:
            wrong = [label for label in shard.labels if not 0 <= label < classes]
            if wrong:
                raise InputError(
                    f"Expected labels from 0 to {classes - 1}, but shard {shard.name} has "
                    f"{wrong[0]}; give the names of all classes."
                )


def has_shards(folder: Path) -> bool:
    """Whether there are shards in a folder, with an index or without."""
    return (folder / INDEX).is_file() or any(folder.glob("*.tar"))


def scan(path: Path) -> Shard:
    """Read the headers of a shard.

    Raises:
        InputError: see `ShardIndex.scanned`.
    """
    labels: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for key, ending, offset, size, content in _members(path):
        if ending == ".cls":
            labels[key] = _label(content, path, key)
        elif ending in ENDINGS:
            if key in places:
                raise InputError(f"Expected one image {key} in shard {path}, but there are two.")
            places[key] = offset, size
    lone = sorted(places.keys() ^ labels.keys())
    if lone or not places:
        what = f"{lone[0]} lacks one of them" if lone else "there is none"
        raise InputError(f"Expected images with a .cls each in shard {path}, but {what}.")
    spots = list(places.values())
    return Shard(
        path.name,
        path.stat().st_size,
        "",
        [labels[key] for key in places],
        [offset for offset, _ in spots],
        [size for _, size in spots],
    )


def _members(path: Path) -> Iterator[tuple[str, str, int, int, bytes]]:
    """Key, ending, place, size and, for a label, content of each member of a plain tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                _refuse_unsafe(member, path)
                stem, dot, ending = PurePosixPath(member.name).name.partition(".")
                key = str(PurePosixPath(member.name).with_name(stem)) if stem else member.name
                small = ending == "cls" and member.size < 64
                file = tar.extractfile(member) if small else None
                content = file.read() if file else b""
                yield key, (dot + ending).lower(), member.offset_data, member.size, content
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"Expected a plain tar file, but cannot read shard {path}: {error}; fetch or pack it "
            "again."
        ) from error


def _refuse_unsafe(member: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(member.name)
    outside = name.is_absolute() or ".." in name.parts
    if outside or not member.isreg() or member.issparse():
        what = "leaves it" if outside else "is no plain file"
        raise InputError(
            f"Expected plain files inside shard {path}, but member {member.name!r} {what}; do not "
            "use this shard."
        )


def _label(content: bytes, path: Path, key: str) -> int:
    try:
        return int(content.decode())
    except ValueError as error:
        raise InputError(
            f"Expected the number of a class in {key}.cls of shard {path}, but got {content!r}."
        ) from error


def _checked(entry: dict[str, Any]) -> Shard:
    """A shard of index.json, whose name is that of a file beside it and whose places lie in it."""
    shard = Shard(**entry)
    if PurePosixPath(shard.name).name != shard.name or shard.name in ("", ".", ".."):
        raise ValueError(f"shard {shard.name!r} is not beside it")
    columns = (shard.labels, shard.offsets, shard.sizes)
    if len({len(column) for column in columns}) != 1 or not all(
        type(value) is int for column in columns for value in column
    ):
        raise ValueError(f"numbers of shard {shard.name}")
    for offset, size in zip(shard.offsets, shard.sizes, strict=True):
        if offset < 0 or size < 0 or offset + size > shard.bytes:
            raise ValueError(f"an image outside shard {shard.name}")
    return shard


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
