"""Folders of class folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from cfmask.images import Preprocess

SMALL = Preprocess((8, 8))


# Each class has its own shade, so that a label can be read back from the pixels.
SHADES = {"ant": 10, "bee": 60, "cat": 110, "dog_house": 160}


def picture(name: str) -> Image.Image:
    return Image.new("RGB", (9, 8), (SHADES.get(name, 0),) * 3)


def plant(root: Path, counts: Mapping[str, int]) -> Path:
    """A folder of images: so many of each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(name).save(root / name / f"{i}.png")
    return root
