"""Replacement: which files of a folder are a run's, and how another run takes their place.

The older run's files stay beside the new ones, their names ending in `.replaced`, until the new run
has a checkpoint. The marker is put aside last and brought back first, so that after a kill at any
moment the folder tells what is to be done: no marker aside, and the older run is brought back as it
was; a marker aside, and the newer run stays if it has a checkpoint, or else gives way.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from cfmask.files import is_unfinished
from cfmask.runs.marker import MARKER

ASIDE = ".replaced"
# All that a run, its report and its loggers write; anything else in the folder is the user's own.
WRITTEN = (
    MARKER,
    "config.yaml",
    "summary.json",
    "pretrained.safetensors",
    "weights.safetensors",
    "average.safetensors",
    "skipped.txt",
    "gallery.png",
    "gallery/epoch_*.png",
    "trade_off.png",
    *(f"report.{suffix}" for suffix in ("json", "csv", "md", "tex", "html")),
    "answers/*.safetensors",
    "predictions/*.parquet",
    "checkpoints/*.ckpt",
    "checkpoints/*.damaged",
    "csv/metrics.csv",
    "csv/hparams.yaml",
    "tensorboard/events.out.tfevents.*",
    "tensorboard/hparams.yaml",
    "tensorboard/checkpoints/*.ckpt",
)


FOLDERS = tuple(sorted({str(parent) for file in WRITTEN for parent in Path(file).parents} - {"."}))


def written(folder: Path) -> list[Path]:
    """The files of the run in a folder, whole or half-written, without any that are aside."""
    found = {path for pattern in WRITTEN for path in folder.glob(pattern)}
    return sorted({path for path in found if path.suffix != ASIDE} | set(unfinished(folder)))


def unfinished(folder: Path, places: Sequence[str] = (".", *FOLDERS)) -> list[Path]:
    """What a kill has left half-written in some of the folders of a run."""
    found = [path for place in places for path in (folder / place).glob(".*.partial")]
    return [path for path in found if is_unfinished(path)]


def others(folder: Path) -> list[str]:
    """What lies in a run folder, or in those of its own in it, and is not a run's."""
    own = {*written(folder), *aside(folder), *(folder / name for name in FOLDERS)}
    found = [path for name in (".", *FOLDERS) for path in (folder / name).glob("*")]
    return sorted(str(path.relative_to(folder)) for path in found if path not in own)


def aside(folder: Path) -> list[Path]:
    """The files of a run that is being replaced, their names ending in `.replaced`."""
    return sorted(path for pattern in WRITTEN for path in folder.glob(pattern + ASIDE))


def put_aside(folder: Path) -> None:
    """Make room for another run; the folder has a marker."""
    remove(unfinished(folder), folder)
    # A marker that is aside stands for all.
    for path in sorted(written(folder), key=lambda path: path == folder / MARKER):
        path.rename(path.with_name(path.name + ASIDE))


def bring_back(folder: Path) -> None:
    """Take back what was put aside, wholly or in part, in place of what the newer run wrote."""
    marker = folder / (MARKER + ASIDE)
    if marker.exists():
        remove(written(folder), folder)
        marker.rename(folder / MARKER)
    for path in aside(folder):
        path.rename(path.with_name(path.name.removesuffix(ASIDE)))


def drop_aside(folder: Path) -> None:
    """Delete what was put aside, the marker last."""
    remove(sorted(aside(folder), key=lambda path: path == folder / (MARKER + ASIDE)), folder)


def remove(files: list[Path], root: Path) -> None:
    """Delete files of a run folder in this order, then those of its folders that are empty."""
    for path in files:
        # Some strategies write a folder for a checkpoint.
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in reversed(FOLDERS):
        with contextlib.suppress(OSError):
            (root / name).rmdir()
