"""ShiftReport: figures with their protocol -> terminal table, JSON, trade-off picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from cfmask.errors import InputError


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        model: name of the model's row.
        shift: name of the set, or of a mean of sets.
        metric: "accuracy".
        value: as a fraction in [0, 1].
        correct: number of images classified right; None for means.
        total: number of images; None for means.
        low: lower end of the 95 % interval.
        high: upper end of it.
    """

    model: str
    shift: str
    metric: str
    value: float
    correct: int | None
    total: int | None
    low: float
    high: float


@dataclass(frozen=True)
class ShiftReport:
    """Rows of figures and the protocol they were taken by.

    Attributes:
        rows: the figures.
        protocol: what a reader needs to know to compare them.
        reference: name of the in-distribution set, if there is one.
    """

    rows: list[Row] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None

    def value(self, model: str, shift: str) -> float:
        """Accuracy in [0, 1] of a model on a set or mean; a KeyError if it is not there."""
        for row in self.rows:
            if (row.model, row.shift) == (model, shift):
                return row.value
        raise KeyError(f"{model} on {shift}")

    def save(self, path: Path) -> None:
        """Write as JSON; an older file is replaced only when done."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> ShiftReport:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or another kind of file.
        """
        try:
            content = json.loads(path.read_text())
            rows = [Row(**row) for row in content["rows"]]
            return cls(rows, content["protocol"], content["reference"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"Cannot read a report from {path}: {error}.") from error

    def table(self, title: str = "Top-1 accuracy, %") -> Table:
        """Models by sets: accuracy, and its 95 % interval below it."""
        table = Table(title=title, caption="Below each figure: its 95 % interval.", show_lines=True)
        table.add_column("model")
        shifts = list(dict.fromkeys(row.shift for row in self.rows))
        for shift in shifts:
            table.add_column(f"{shift} (ID)" if shift == self.reference else shift, justify="right")
        for model in dict.fromkeys(row.model for row in self.rows):
            cells = {row.shift: row for row in self.rows if row.model == model}
            table.add_row(model, *(_cell(cells.get(shift)) for shift in shifts))
        return table

    def plot_trade_off(self, path: Path) -> bool:
        """Draw accuracy in distribution against the mean under shift, one point a model.

        Returns:
            False if there is no reference set or no mean to draw.
        """
        points = list(self._points())
        if not points:
            return False
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, x, y in points:
            bars = (
                [[100 * (p.value - p.low)] for p in (x, y)],
                [[100 * (p.high - p.value)] for p in (x, y)],
            )
            axes.errorbar(
                100 * x.value,
                100 * y.value,
                xerr=[bars[0][0], bars[1][0]],
                yerr=[bars[0][1], bars[1][1]],
                fmt="o",
                capsize=3,
                label=name,
            )
        wise = sorted((x.value, y.value) for _, x, y in points)
        low = min(v for pair in wise for v in pair) * 100 - 5
        high = max(v for pair in wise for v in pair) * 100 + 5
        axes.plot([low, high], [low, high], ":", color="grey", label="y = x")
        axes.set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel=f"in distribution ({self.reference}), %",
            ylabel="mean of shifts, %",
            title="In distribution against under shift",
        )
        axes.legend()
        figure.savefig(path, dpi=130)
        return True

    def _points(self) -> Iterable[tuple[str, Row, Row]]:
        for model in dict.fromkeys(row.model for row in self.rows):
            cells = {row.shift: row for row in self.rows if row.model == model}
            if self.reference in cells and "mean of shifts" in cells:
                yield model, cells[self.reference], cells["mean of shifts"]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{100 * row.value:.1f}\n[dim]{100 * row.low:.1f}–{100 * row.high:.1f}[/dim]"
