"""Findings: what the missingness lab has found, as a file, a table and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Column, Table

from cfmask.errors import visible
from cfmask.files import write_text, write_whole
from cfmask.missingness.curves import Curve
from cfmask.reporting.escapes import drawing, drawn
from cfmask.reporting.svg import LIGHT

# Name of a measure -> what it is called in pictures, and the factor to its unit there.
SHOWN = {
    "accuracy": ("accuracy, %", 100.0),
    "kept": ("kept predictions, %", 100.0),
    "entropy": ("entropy of the classes, nats", 1.0),
    "similarity": ("WordNet similarity", 1.0),
}
TITLES = {"random": "at random", "most": "most relevant first", "least": "least relevant first"}


@dataclass(frozen=True)
class CurveRow:
    """The curves of a model by one segmentation, order and way of hiding."""

    model: str
    segments: str
    order: str
    hiding: str
    curves: Mapping[str, Curve]


@dataclass
class Findings:
    """All that the lab has found.

    Attributes:
        protocol: how: images, ways, seed, versions.
        removal: removal curves.
        tables: other measures, by name: rows of figures by the names of their columns.
    """

    protocol: dict[str, Any]
    removal: list[CurveRow] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def save(self, folder: Path) -> list[Path]:
        """Write `missingness.json` and the pictures; gives all paths."""
        text = json.dumps(asdict(self), indent=1)
        write_text(folder / "missingness.json", text)
        return [folder / "missingness.json", *self._pictures(folder)]

    def _pictures(self, folder: Path) -> Iterator[Path]:
        models = list(dict.fromkeys(row.model for row in self.removal))
        for number, model in enumerate(models):
            rows = [row for row in self.removal if row.model == model]
            for measure in rows[0].curves:
                start = f"{number}-" if len(models) > 1 else ""
                path = folder / f"{start}{measure}.png"
                draw_curves(path, rows, measure, model if len(models) > 1 else "")
                yield path

    def printed(self) -> Iterator[Table]:
        """Tables for a terminal."""
        if self.removal:
            yield _removal_table(self.removal)
        for name, rows in self.tables.items():
            yield plain_table(name, rows)


def _removal_table(rows: Sequence[CurveRow]) -> Table:
    """Areas of all curves with their intervals."""
    measures = list(rows[0].curves)
    heads = ["model", "segments", "order", "hidden by", *(SHOWN[m][0] for m in measures)]
    columns = [Column(head, overflow="fold") for head in heads]
    table = Table(*columns, title="Mean over the degrees of removal, 0 to 1 (95 % interval)")
    for row in rows:
        cells = [_area(row.curves[m], SHOWN[m][1]) for m in measures]
        table.add_row(visible(row.model), row.segments, row.order, row.hiding, *cells)
    return table


def _area(curve: Curve, unit: float) -> str:
    value, low, high = (unit * part for part in curve.area)
    digits = 1 if unit > 1 else 2
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def plain_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of figures as they are; numbers with three digits after the point, intervals behind."""
    heads = [key for key in dict.fromkeys(k for row in rows for k in row) if key != "classes"]
    table = Table(*(Column(head, overflow="fold") for head in heads), title=name)
    for row in rows:
        table.add_row(*(_cell(row.get(head)) for head in heads))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        middle, low, high = (_cell(part) for part in value)
        return f"{middle} ({low}–{high})"
    return f"{value:.3f}" if isinstance(value, float) else visible(value)


def draw_curves(path: Path, rows: Sequence[CurveRow], measure: str, title: str) -> None:
    """Write small multiples of one measure as a PNG: a row a segmentation, a column an order.

    Args:
        path: the file.
        rows: of one model.
        measure: key of their curves.
        title: above all.
    """
    orders = list(dict.fromkeys(row.order for row in rows))
    kinds = list(dict.fromkeys(row.segments for row in rows))
    ways = list(dict.fromkeys(row.hiding for row in rows))
    with drawing(), rc_context(LIGHT.style()):
        size = (max(4.2, 2.7 * len(orders) + 0.6), 2.3 * len(kinds) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(kinds), len(orders), sharex=True, sharey=True, squeeze=False)
        for i, kind in enumerate(kinds):
            for j, order in enumerate(orders):
                own = [row for row in rows if (row.order, row.segments) == (order, kind)]
                _draw_panel(grid[i][j], own, measure, ways)
                grid[i][j].set_title(f"{kind}, {TITLES[order]}", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel("hidden, %")
        for axes in grid[:, 0]:
            axes.set_ylabel(SHOWN[measure][0])
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=min(4, len(ways)), frameon=False
        )
        if title:
            figure.suptitle(drawn(title), fontsize=10)
        write_whole(path, lambda file: figure.savefig(file, dpi=160, format="png"))


def _draw_panel(axes: Axes, rows: Sequence[CurveRow], measure: str, ways: Sequence[str]) -> None:
    unit = SHOWN[measure][1]
    for row in rows:
        found, look = row.curves[measure], LIGHT.look(ways.index(row.hiding))
        x = [100 * k / (len(found.values) - 1) for k in range(len(found.values))]
        low, middle, high = (
            [unit * v for v in part] for part in (found.low, found.values, found.high)
        )
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.plot(x, middle, **look, markersize=3.5, linewidth=1.2, label=row.hiding, clip_on=False)
    axes.set_xlim(0, 100)
    # An entropy of nothing is some 1e-7 below 0.
    axes.set_ylim(0, max(axes.get_ylim()[1], 0.01 * unit))
    axes.grid(axis="y")
