"""Equipment: the loggers and callbacks of a run, beside those that its user gives to Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cfmask.errors import InputError, unknown
from cfmask.runs.gallery import GALLERY, EpochGallery
from cfmask.runs.metrics_file import MetricsLogger
from cfmask.runs.progress import OneLineBar
from cfmask.runs.resume import BestCheckpoint, Position, checkpoints_of
from cfmask.runs.summary import SUMMARY, Announce

# Lightning's loggers by short name, made for the folder of a run.
LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "csv": MetricsLogger,
    "tensorboard": lambda run: TensorBoardLogger(run, name=None, version="tensorboard"),
    "wandb": lambda run: WandbLogger(run.name, save_dir=run, project="cfmask"),
    "mlflow": lambda run: MLFlowLogger("cfmask", run.name, tracking_uri=_mlflow_store(run)),
}


def _mlflow_store(run: Path) -> str:
    """The user's own MLflow server, or a database beside the run, which all runs there share."""
    run.parent.mkdir(parents=True, exist_ok=True)
    beside = f"sqlite:///{run.resolve().parent / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or beside


def check_loggers(names: Sequence[str]) -> None:
    """Refuse unknown loggers, and those whose library is not installed.

    Raises:
        InputError: an unknown name, or a library that is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        if name != "csv" and find_spec(name) is None:
            raise InputError(
                f"Expected {name} to be installed for --logger {name}: pip install {name}."
            )


def loggers_of(run: Path, wanted: Any, names: Sequence[str] = ("tensorboard", "csv")) -> Any:
    """Loggers of a run, unless others or none are wanted.

    Args:
        run: the folder.
        wanted: what the user gave as Lightning's `logger`: None, true, false, or loggers.
        names: of `LOGGERS`, where that is None or true. There is always a CSV, of which reports
            draw the curves of training.
    """
    if wanted is None or wanted is True:
        return [LOGGERS[name](run) for name in dict.fromkeys([*names, "csv"])]
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
