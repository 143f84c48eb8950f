"""Pack: an image folder -> tar shards of the WebDataset layout; and a check of them.

``cfmask pack photos/train --out shards`` packs; ``cfmask pack shards --verify
true`` reads the shards against their index. The bytes of the images are not touched.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track

from cfmask.data.file_index import FileIndex
from cfmask.data.shard_index import INDEX, Shard, ShardIndex, checksum, scan
from cfmask.data.shards import ShardImages
from cfmask.data.unreadable import complaints, refuse_unreadable
from cfmask.decoding import image_file
from cfmask.errors import InputError, at_least
from cfmask.files import check_out, whole_folder
from cfmask.images import Preprocess
from cfmask.shift import check_apart


def pack(folder: Path, out: Path, shard_size: int = 1000, workers: int = 0) -> ShardIndex:
    """Pack an image folder.

    Images are put into the shards in a shuffled order, the same every time. Two files of the same
    content give the same bytes, whenever they are packed.

    Args:
        folder: with one subfolder a class.
        out: a new or empty folder for the shards and index.json.
        shard_size: images a shard; the last has the rest.
        workers: processes that look at the images first.

    Raises:
        InputError: no images, some that cannot be read, an `out` that holds files or lies in
            `folder`, a full disk.
    """
    at_least(1, shard_size, "image a shard (shard_size)")
    at_least(0, workers, "workers")
    check_out(out)
    check_apart(out, folder)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"Expected a new or empty folder for the shards, but {out} holds files.")
    files = FileIndex.of(folder)
    paths = [files.path(i) for i in range(len(files))]
    refuse_unreadable(paths, workers, progress=sys.stderr.isatty())
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    starts = range(0, len(files), shard_size)
    digits = max(6, len(str(len(starts))))
    with whole_folder(out) as part:
        bar = track(starts, "Packing", transient=True, disable=not sys.stderr.isatty())
        shards = tuple(
            _write(
                part / f"shard-{n:0{digits}}.tar", files, order[first : first + shard_size], first
            )
            for n, first in enumerate(bar)
        )
        ShardIndex(part, files.classes, shards).save(part)
    return ShardIndex.load(out)


def _write(path: Path, files: FileIndex, indices: Sequence[int], first: int) -> Shard:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, index in enumerate(indices, first):
            source = Path(files.path(index))
            with image_file(source) as file:
                data = file.read()
            _add(tar, f"{number:09}{source.suffix.lower()}", data)
            _add(tar, f"{number:09}.cls", str(int(files.owners[index])).encode())
    found = scan(path)
    return Shard(**{**vars(found), "sha256": checksum(path)})


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without owner and time, so that equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o444
    tar.addfile(member, io.BytesIO(data))


def verify(folder: Path, workers: int = 0) -> ShardIndex:
    """Read shards against their index: checksums, members and classes; decode every image.

    Args:
        folder: with shards and index.json.
        workers: processes that decode.

    Raises:
        InputError: what is wrong first, with the shard.
    """
    at_least(0, workers, "workers")
    index = ShardIndex.load(folder)
    for shard in track(index.shards, "Checksums", transient=True, disable=not sys.stderr.isatty()):
        path = folder / shard.name
        if not path.is_file():
            raise InputError(f"Expected shard {path}, but it is not there; copy it again.")
        if checksum(path) != shard.sha256:
            raise InputError(
                f"Expected shard {path} with the checksum of {INDEX}, but got another; copy it "
                "again."
            )
        if vars(scan(path)) != {**vars(shard), "sha256": ""}:
            raise InputError(
                f"Expected the members of {INDEX} in shard {path}, but got others; pack again."
            )
    _refuse_undecodable(index, workers)
    return index


def _refuse_undecodable(index: ShardIndex, workers: int) -> None:
    images = ShardImages(index, Preprocess((32, 32)))
    found = complaints(len(images), images.__getitem__, workers, "Decoding", sys.stderr.isatty())
    broken = [complaint for complaint in found if complaint]
    if broken:
        more = f" {len(broken) - 1} more cannot be read." if len(broken) > 1 else ""
        raise InputError(f"{broken[0]}{more}")
