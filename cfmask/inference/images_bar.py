"""The bar of an evaluation: images a second, and the time left."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class ImagesPerSecond(ProgressColumn):
    """Column of a progress bar: images a second."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn`."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


# Columns of a `rich.progress.Progress` whose tasks are sets.
COLUMNS = (
    TextColumn("Evaluating {task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    ImagesPerSecond(),
    TimeRemainingColumn(),
    TextColumn("left"),
)
