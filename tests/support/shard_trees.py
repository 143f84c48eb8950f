"""Image folders in shards, for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import webdataset
from PIL import Image

from support.folders import picture, plant
from support.pictures import noise

COUNTS = {"ant": 11, "bee": 7, "cat": 5, "dog_house": 2}


def plant_photos(root: Path) -> Path:
    """Images of four classes, each of its own bytes and kind of file.

    The first pixel has the shade of the class.
    """
    plant(root, COUNTS)
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        image = Image.fromarray(noise(12, 10 + i % 3, seed=i))
        image.paste(picture(file.parent.name).crop((0, 0, 9, 6)), (0, 0))
        file.unlink()
        image.save(file.with_suffix((".png", ".jpg", ".JPEG", ".gif")[i % 4]))
    return root


def as_webdataset(*paths: Path) -> list[tuple[bytes, int]]:
    """Image files and labels as the webdataset library reads them."""
    data = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    kinds = ("png", "jpg", "jpeg", "gif", "webp", "bmp")
    return [
        (next(sample[kind] for kind in kinds if kind in sample), int(sample["cls"]))
        for sample in data
    ]


def copied(packed: Path, to: Path) -> Path:
    to.mkdir()
    for file in packed.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 255
    file.write_bytes(data)


def write(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))
    return path


def png(k: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(9, 9, seed=k)).save(stream, "png")
    return stream.getvalue()
