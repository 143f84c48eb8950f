"""Marker: the file by which a run folder is known, with what the run began from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfmask.checkpoint import PRETRAINED
from cfmask.data.shard_index import checksum
from cfmask.errors import InputError
from cfmask.files import read_json, write_text
from cfmask.version import __version__

MARKER = "cfmask.json"
MADE_BY = "made by"


def is_marked(folder: Path) -> bool:
    """Whether a folder has a marker that this project wrote."""
    try:
        content = read_json(folder / MARKER)
    except InputError:
        return False
    return isinstance(content, dict) and str(content.get(MADE_BY, "")).startswith("cfmask ")


def mark(folder: Path, images: Mapping[str, Any] | None = None) -> None:
    """Write the marker.

    Args:
        folder: of the run.
        images: what tells the training images from others; see `TrainingData.identity`. With them,
            the starting weights are there and are noted too.
    """
    content: dict[str, Any] = {MADE_BY: f"cfmask {__version__}"}
    if images is not None:
        content |= {"images": dict(images), "pretrained": checksum(folder / PRETRAINED)}
    write_text(folder / MARKER, json.dumps(content, indent=1) + "\n")


def held_out(folder: Path) -> list[str]:
    """Paths of the images that a run has held out for testing, below the folder of its images.

    Raises:
        InputError: a damaged marker.
    """
    paths = noted_images(folder).get("held out", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise _damaged(folder / MARKER)
    return paths


def noted_images(folder: Path) -> dict[str, Any]:
    """What tells a run's images from others; empty for a run of an older version.

    Raises:
        InputError: a damaged marker.
    """
    marker = folder / MARKER
    begun = read_json(marker) if marker.is_file() else {}
    images = begun.get("images", {}) if isinstance(begun, dict) else None
    if not isinstance(images, dict):
        raise _damaged(marker)
    return images


def _damaged(marker: Path) -> InputError:
    return InputError(f"Expected what the run began with in {marker}, but it is damaged.")


def check_beginning(folder: Path, images: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other images or starting weights than it began with.

    Runs of older versions say nothing of it and pass.

    Args:
        folder: of the run.
        images: what tells the training images from others; see `TrainingData.identity`.

    Raises:
        InputError: other classes, images or starting weights, or a damaged marker.
    """
    marker, start = folder / MARKER, folder / PRETRAINED
    begun = read_json(marker) if marker.is_file() else {}
    if not isinstance(begun, dict):
        raise _damaged(marker)
    if "images" not in begun:
        return
    wrong = _difference(begun["images"], images)
    if not wrong and not (start.is_file() and begun.get("pretrained") == checksum(start)):
        wrong = f"{start} is not the file that it began from"
    if wrong:
        raise InputError(
            f"Expected to go on with the run in {folder} as it began, but {wrong}; put that back, "
            "or start again with --overwrite true."
        )


def check_images(folder: Path, images: Mapping[str, Any]) -> None:
    """Refuse images that are not those of a run; one of an older version has noted none.

    Args:
        folder: of the run.
        images: see `TrainingData.identity`.

    Raises:
        InputError: other classes or images, or a damaged marker.
    """
    begun = noted_images(folder)
    wrong = _difference(begun, images) if begun else ""
    if wrong:
        raise InputError(f"Expected the images of the run in {folder}, but {wrong}; put them back.")


def _difference(begun: Any, now: Mapping[str, Any]) -> str:
    """How the images differ from those that a run began with; empty if they do not."""
    if begun == now:
        return ""
    if not isinstance(begun, dict):
        return "what it says of its images is damaged"
    old, new = begun.get("classes"), now["classes"]
    if not isinstance(old, list) or len(old) != len(new):
        return f"it had other classes than these {len(new)}: {', '.join(new[:8])}"
    for k, (was, name) in enumerate(zip(old, new)):
        if was != name:
            return f"class {k} was {was!r} and is {name!r}"
    for name in ("train", "val"):
        if begun.get(name) != now[name]:
            return f"there were {begun.get(name)} and are {now[name]}"
    return "its images have other names, sizes or labels"
