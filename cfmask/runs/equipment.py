"""Equipment: the loggers and callbacks of a run, beside those that its user gives to Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from cfmask.runs.gallery import GALLERY, EpochGallery
from cfmask.runs.metrics_file import MetricsLogger
from cfmask.runs.progress import OneLineBar
from cfmask.runs.resume import BestCheckpoint, Position, checkpoints_of
from cfmask.runs.summary import SUMMARY, Announce


def loggers_of(run: Path, wanted: Any) -> Any:
    """Loggers for TensorBoard and CSV in the folder of a run, unless others or none are wanted.

    Args:
        run: the folder.
        wanted: what the user gave as Lightning's `logger`: None, true, false, or loggers.
    """
    if wanted is None or wanted is True:
        return [TensorBoardLogger(run, name=None, version="tensorboard"), MetricsLogger(run)]
    return wanted


def callbacks_of(
    run: Path | None, given: Sequence[Callback], progress: bool = True, saving: bool = True
) -> list[Callback]:
    """The user's callbacks, and those of a run.

    These are a summary, seeds, and as the options have it a progress bar, checkpoints of the last
    and of the best epoch, and pictures.

    Args:
        run: folder of the run; None writes nothing.
        given: the user's; a progress bar among them takes the place of the run's own.
        progress: whether a progress bar is wanted.
        saving: whether checkpoints are wanted.
    """
    own: list[Callback] = [Announce(run / SUMMARY if run else None), Position()]
    if progress and not any(isinstance(callback, ProgressBar) for callback in given):
        own.append(OneLineBar())
    if run:
        own.append(EpochGallery(run / GALLERY))
    if run and saving:
        own.append(BestCheckpoint(checkpoints_of(run)))
    return [*given, *own]
