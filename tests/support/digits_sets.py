"""Sets beside the digits world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from cfmask import digits
from cfmask.images import Preprocess
from cfmask.shift import Request

SMALL = Preprocess((8, 8))


DIGITS = Request(class_names=digits.CLASS_NAMES, images=20)


SHADES = {"ant": 10, "bee": 60, "cat": 110}


def plant(root: Path, sets: Mapping[str, Mapping[str, int]]) -> Path:
    """A tree of sets, of classes, of so many images in the shade of their class."""
    for name, counts in sets.items():
        for kind, count in counts.items():
            (root / name / kind).mkdir(parents=True)
            for i in range(count):
                shade = SHADES.get(kind, 0)
                Image.new("RGB", (8, 8), (shade,) * 3).save(root / name / kind / f"{i}.png")
    return root


def content(shift) -> list[tuple[int, int]]:
    """Shade and label of each image of a set."""
    data = shift.load(SMALL)
    return [(int(data[i][0][0, 0, 0]), int(data[i][1])) for i in range(len(data))]


NAMES = ("ant", "bee", "cat")
