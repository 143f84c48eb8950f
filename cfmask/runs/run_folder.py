"""RunFolder: where a run keeps its config, weights, metrics, pictures and report."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from cfmask.checkpoint import PRETRAINED, WEIGHTS, load_classifier, save_classifier
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.runs.gallery import GALLERY, EpochGallery
from cfmask.runs.resume import BestCheckpoint, Position, checkpoints_of, leads, newest
from cfmask.runs.summary import SUMMARY, Announce

CONFIG = "config.yaml"
LOCK = ".lock"
SKIPPED = "skipped.txt"
# Settings that a run may change when it goes on: they do not touch the training.
FREE = ("run", "evaluation", "checkpoints", "skip_nonfinite")


class RunFolder:
    """The folder of one run.

    Holds config.yaml, weights.safetensors (tuned), pretrained.safetensors (the starting point),
    checkpoints/ (for going on), tensorboard/ and metrics.csv, report.json and the pictures.

    Args:
        path: the folder; nothing is written before `start`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self, config: str, overwrite: bool, resume: bool = False) -> None:
        """Refuse a folder that holds another run, an unfinished one, or one at work.

        Args:
            config: the YAML text of the run that is to begin.
            overwrite: True allows to replace what is there.
            resume: True allows an unfinished run, if it has the same settings.

        Raises:
            InputError: the folder holds files that are not a run's, another run's, or those of an
                unfinished run that nobody wants to resume.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        file = self.path / CONFIG
        if not file.is_file() and [path.name for path in self.path.iterdir()] != [LOCK]:
            raise InputError(
                f"Expected a new folder or a run folder, but {self.path} holds other files."
            )
        with self.held():
            pass
        if overwrite or not file.is_file():
            return
        other = _difference(_settings(file.read_text()), _settings(config))
        if other:
            raise InputError(
                f"{self.path} holds a run of another config ({other}); give another --run, or "
                "--overwrite true."
            )
        if not resume and self.checkpoints() and not (self.path / WEIGHTS).is_file():
            raise InputError(
                f"{self.path} holds an unfinished run; go on with --resume true, or start again "
                "with --overwrite true."
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process from running here, until the context or the process ends.

        Raises:
            InputError: another process runs here.
        """
        if os.name != "posix" or not leads():
            yield
            return
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a+") as file:
            try:
                # The system frees it when a process dies, and its workers do not inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise InputError(
                    f"Expected no other run in {self.path}, but {file.read() or error} is at work "
                    "there; wait for it, or give another --run."
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    @rank_zero_only
    def start(self, config: str, classifier: Classifier) -> None:
        """Clear what an older run left, then write the config and the starting point."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        (self.path / CONFIG).write_text(config)
        save_classifier(classifier, self.path / PRETRAINED)

    def checkpoints(self) -> list[Path]:
        """Files from which the run could go on, whole or not."""
        return sorted(checkpoints_of(self.path).glob("*.ckpt"))

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; see `cfmask.runs.resume.newest`."""
        return newest(checkpoints_of(self.path))

    @rank_zero_only
    def clear_unless_trained(self) -> None:
        """Remove the folder if the run ended before its first checkpoint."""
        if not self.checkpoints():
            shutil.rmtree(self.path, ignore_errors=True)

    def loggers(self) -> list[Any]:
        """A TensorBoard logger and one for CSV."""
        return [
            TensorBoardLogger(self.path, name=None, version="tensorboard"),
            CSVLogger(self.path, name=None, version="csv"),
        ]

    @rank_zero_only
    def rewind_metrics(self, logger: Any, step: int) -> None:
        """Keep the metrics of the first steps for a run that goes on; Lightning would drop all.

        Args:
            logger: the CSV logger, which has written nothing yet.
            step: optimiser steps of the checkpoint.
        """
        file = self.path / "csv" / "metrics.csv"
        rows = list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []
        kept = [row for row in rows if int(row["step"]) < step]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.experiment.metrics += [{k: v for k, v in row.items() if v} for row in kept]
        logger.save()

    def callbacks(self) -> list[pl.Callback]:
        """Summary, progress bar, seeds, checkpoints of the last and of the best epoch."""
        return [
            Announce(self.path / SUMMARY),
            EpochGallery(self.path / GALLERY),
            RichProgressBar(leave=True),
            Position(),
            BestCheckpoint(checkpoints_of(self.path)),
        ]

    def finish(self) -> Classifier:
        """Write the weights of the best epoch as weights.safetensors and give the classifier."""
        best = checkpoints_of(self.path) / "best.ckpt"
        tuned = load_classifier(best if best.is_file() else best.with_name("last.ckpt"))
        save_classifier(tuned, self.path / WEIGHTS)
        return tuned

    def note_skipped(self, images: list[str]) -> None:
        """Write the lines about training images that could not be read, if there are any."""
        if images:
            (self.path / SKIPPED).write_text("\n".join(images) + "\n")

    def skipped(self) -> list[str]:
        """These lines."""
        file = self.path / SKIPPED
        return file.read_text().splitlines() if file.is_file() else []

    def precision(self) -> str | None:
        """The precision in which an unfinished run began; None if there is none to go on with."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if self.checkpoints():
                return str(json.loads((self.path / SUMMARY).read_text())["precision"])
        return None

    def config(self) -> dict[str, Any]:
        """The run's configuration.

        Raises:
            InputError: not a run folder.
        """
        file = self.path / CONFIG
        if not file.is_file():
            raise InputError(f"Expected a run folder with {CONFIG}, but got {self.path}.")
        content: dict[str, Any] = yaml.safe_load(file.read_text())
        return content


def _settings(config: str) -> dict[str, Any]:
    """The settings of a config that make the training, flat: `a.b.c` -> value."""
    content = yaml.safe_load(config)
    return _flat({key: value for key, value in content.items() if key not in FREE})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = value if isinstance(value, dict) and value else None
        flat |= _flat(inner, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first settings in which two runs differ, in words."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    texts = [f"{key} is {old.get(key)} there and {new.get(key)} here" for key in keys[:2]]
    return "; ".join(texts) + (f"; and {len(keys) - 2} more" if len(keys) > 2 else "")
