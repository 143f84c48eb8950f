"""Progress: what a run shows and logs while it goes."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from rich.progress import BarColumn

# A run logs at least so many of its steps, and a curve in a report has at most so many points.
POINTS = 300
# Lightning's default interval.
SELDOM = 50


class LogSteps(pl.Callback):
    """Logs every step of a short run, and in a long one at least `POINTS` steps.

    For runs whose `log_every_n_steps` is not given.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `Callback.on_train_start`."""
        steps = trainer.estimated_stepping_batches
        every = steps // POINTS if math.isfinite(steps) else SELDOM
        trainer.log_every_n_steps = int(min(max(1, every), SELDOM))  # type: ignore[attr-defined]


class OneLineBar(RichProgressBar):
    """Lightning's progress bar, short enough for a line of 80 columns."""

    def __init__(self) -> None:
        super().__init__(leave=True, theme=RichProgressBarTheme(metrics_text_delimiter=" "))

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """See `RichProgressBar.configure_columns`."""
        columns: list[Any] = super().configure_columns(trainer)
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 7
        return columns

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the metrics only as often as they are logged: each read waits for the GPU."""
        every = trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        if not (trainer.training and trainer.global_step % every) or trainer.is_last_batch:
            super()._update_metrics(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """See `RichProgressBar.get_metrics`; `loss/total` is called loss, `val/accuracy` val."""
        found: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {name.partition("/")[0]: value for name, value in found.items() if name != "v_num"}
