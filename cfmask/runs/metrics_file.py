"""Metrics: the figures of a training as csv/metrics.csv, a file that is whole at any time."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from cfmask.files import write_whole
from cfmask.runs.resume import leads


class MetricsLogger(CSVLogger):
    """Lightning's CSV logger, whose file a kill leaves whole and a run that goes on takes up.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run, name=None, version="csv")
        self._experiment: _Rows | None = None

    @property
    def experiment(self) -> Any:
        """The rows in memory, in the first process alone."""
        if not leads():
            return super().experiment
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Keep the rows of earlier steps, for a run that goes on.

        Args:
            step: optimiser steps of the checkpoint.
        """
        rows: _Rows = self.experiment
        rows.kept = _rows_before(Path(rows.metrics_file_path), step)
        rows.write()


class _Rows(ExperimentWriter):
    """All rows of a file; those before this process, and those that it has logged."""

    def __init__(self, log_dir: str) -> None:
        self.kept: list[dict[str, Any]] = []
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the file of the run that goes on."""

    def save(self) -> None:
        """Write the file, if there is anything new."""
        if self.metrics:
            self.kept += self.metrics
            self.metrics = []
            self.write()

    def write(self) -> None:
        """Write all rows."""
        names = sorted({name for row in self.kept for name in row})
        if names:
            write_whole(Path(self.metrics_file_path), lambda file: self._write(file, names))

    def _write(self, path: Path, names: list[str]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.kept)


def _rows_before(file: Path, step: int) -> list[dict[str, Any]]:
    """Rows of earlier steps; damaged lines are left out with a warning."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
    rows, lost = [], 0
    for row in csv.DictReader(text.splitlines()):
        try:
            early = int(row["step"]) < step
            whole = None not in row and None not in row.values()
        except (KeyError, TypeError, ValueError):
            early, whole = False, False
        lost += not whole
        if early and whole:
            rows.append({name: value for name, value in row.items() if value})
    if lost:
        warnings.warn(f"{file} is damaged: {lost} of its lines are left out.", stacklevel=2)
    return rows
