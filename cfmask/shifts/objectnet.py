"""ObjectNet: objects at odd angles, evaluated on the classes that ImageNet has too."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cfmask.data.folders import Pictures
from cfmask.errors import InputError
from cfmask.shifts.imagenet_val import AS_STORED
from cfmask.shifts.pictures import Contents

BORDER = 2
SOURCE = "https://objectnet.dev/download.html"
MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


def objectnet(folder: Path, root: Path) -> Contents:
    """Images of the classes that ImageNet has; a label is the number of such a class."""
    overlap, others = _classes(folder / "mappings")
    labels = {name: k for k, name in enumerate(sorted(overlap))}
    accepts = {number: overlap[name] for name, number in labels.items()}
    return Contents.of_folders(
        folder / "images",
        labels,
        "ObjectNet folder names",
        f"{BORDER} pixels cropped from each side before resizing; {AS_STORED}",
        others,
        classes=tuple(sorted({k for several in accepts.values() for k in several})),
        accepts=accepts,
        dataset=partial(Pictures, border=BORDER),
    )


def _classes(mappings: Path) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Head classes of the folders that ImageNet has too, and the names of the other folders.

    The mapping goes from folder to ObjectNet label, to ImageNet labels joined by "; ", to their
    lines in a list (from 0), to head classes.
    """
    absent = [name for name in MAPPINGS if not (mappings / name).is_file()]
    if absent:
        raise InputError(
            f"Expected ObjectNet's own {', '.join(absent)} in {mappings}; get them from {SOURCE}."
        )
    try:
        texts = [(mappings / name).read_text(encoding="utf-8") for name in MAPPINGS]
        folders, several, lines = map(json.loads, texts[:3])
        labels = texts[3].split("\n")
        heads: dict[str, list[int]] = defaultdict(list)
        for head, line in lines.items():
            heads[labels[line].strip()].append(int(head))
        overlap = {
            folder: tuple(sorted(_only(heads[label]) for label in several[name].split("; ")))
            for folder, name in folders.items()
            if name in several
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"Cannot read ObjectNet's classes in {mappings}: {error!r}.") from error
    return overlap, frozenset(folders) - frozenset(overlap)


def _only(heads: Sequence[int]) -> int:
    """The head class of a label; a ValueError for a label of two ("crane", bird or machine)."""
    (head,) = heads
    return head
