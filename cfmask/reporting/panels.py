"""Panels: curves and bars of several series, as SVG for a page or as a PNG.

What a series is called stands in a legend beside the panels, which all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfmask.files import write_whole
from cfmask.reporting.escapes import drawing, drawn
from cfmask.reporting.svg import GLYPHS, LIGHT, Ink, svg_of

HOLLOW = ["○", "□", "△", "◇", "▽", "✛"]
# Letters of a name that are drawn beside a bar.
MOST_LETTERS = 22


@dataclass(frozen=True)
class Series:
    """Figures that have one colour in all panels.

    Attributes:
        number: of its colour and marker; None for what the others are compared with, in grey.
        y: figures, one for each place of the panel.
        low: lower ends of their intervals; empty without intervals.
        high: upper ends.
    """

    number: int | None
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """A chart.

    Attributes:
        title: what it shows.
        unit: of the figures, for their axis.
        places: numbers for curves, names for bars.
        series: with a figure for each place.
        across: what the numbers of `places` are.
        limits: of the axis of the figures; an end is None where the figures say it.
    """

    title: str
    unit: str
    places: Sequence[float] | Sequence[str]
    series: Sequence[Series]
    across: str = ""
    limits: tuple[float | None, float | None] = (0, None)

    @property
    def bars(self) -> bool:
        """Whether figures are bars beside names."""
        return bool(self.places) and isinstance(self.places[0], str)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return (3.4, 0.75 + 0.15 * len(self.places) * (len(self.series) + 1) if self.bars else 2.5)


def svg(panel: Panel) -> str:
    """The panel for a page, as `svg_of` gives it."""
    return svg_of(lambda axes, ink: _draw(axes, ink, panel), panel.size, panel.title)


def legend(names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Name, number of its colour and marker of each series, for a page."""
    kinds = [*GLYPHS, *HOLLOW]
    return [(name, k % len(GLYPHS), kinds[k % len(kinds)]) for k, name in enumerate(names)]


def save(path: Path, panels: Sequence[Panel], names: Sequence[str], columns: int) -> None:
    """Write panels as one PNG with a legend.

    Args:
        path: the file.
        panels: at least one.
        names: of the series, by their numbers.
        columns: panels beside each other.
    """
    columns = min(columns, len(panels))
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [max(panel.size[1] for panel in row) for row in rows]
    with drawing(), rc_context(LIGHT.style()):
        size = max(4.2, 3.2 * columns), sum(heights) + 0.3 + 0.2 * -(-len(names) // 4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid.flat, panels):
            _draw(axes, LIGHT, panel)
            axes.set_title(drawn(panel.title), fontsize=9)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for k, name in enumerate(names):
            grid[0][0].plot([], [], **_look(LIGHT, k), linewidth=1.2, label=drawn(name))
        handles, shown = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside upper center", ncols=4, frameon=False)
        write_whole(path, lambda file: figure.savefig(file, dpi=160, format="png"))


def _look(ink: Ink, number: int | None) -> dict[str, Any]:
    """Colour, marker and line; further series than there are colours are hollow and dashed."""
    if number is None:
        return {"color": ink.muted, "linestyle": (0, (1, 2))}
    turn = number // len(GLYPHS)
    style = {"linestyle": ("-", "--", ":")[turn % 3], "markersize": 3.8}
    return ink.look(number) | style | ({"markerfacecolor": ink.paper} if turn else {})


def _draw(axes: Axes, ink: Ink, panel: Panel) -> None:
    if panel.bars:
        _draw_bars(axes, ink, panel)
    else:
        _draw_curves(axes, ink, panel)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, ink: Ink, panel: Panel) -> None:
    x = [float(place) for place in panel.places]
    for one in panel.series:
        look = _look(ink, one.number)
        if one.low:
            axes.fill_between(x, one.low, one.high, color=look["color"], alpha=0.13, linewidth=0)
        axes.plot(x, one.y, **look, linewidth=1.2, clip_on=False)
    room = 0.02 * (max(x) - min(x)) if len(x) < 6 else 0
    axes.set(xlim=(min(x) - room, max(x) + room), xlabel=panel.across, ylabel=panel.unit)
    if len(x) < 7:
        axes.set_xticks(x, [f"{place:g}" for place in x])
    low, high = panel.limits
    # Figures that are all nothing still have an axis.
    axes.set_ylim(low, max(axes.get_ylim()[1], 0.01) if high is None else high)
    axes.grid(axis="y")


def _draw_bars(axes: Axes, ink: Ink, panel: Panel) -> None:
    thick = 1 / (len(panel.series) + 1)
    for k, one in enumerate(panel.series):
        y = [place + (k + 1) * thick - 0.5 for place in range(len(panel.places))]
        look = _look(ink, one.number)
        inside = look.get("markerfacecolor", look["color"])
        axes.barh(y, one.y, 0.86 * thick, facecolor=inside, edgecolor=look["color"])
        for place, low, high in zip(y, one.low, one.high):
            axes.plot([low, high], [place, place], color=ink.text, linewidth=1)
    axes.set_yticks(range(len(panel.places)), [_short(str(name)) for name in panel.places])
    axes.set(ylim=(len(panel.places) - 0.5, -0.5), xlabel=panel.unit, xlim=panel.limits)
    axes.grid(axis="x")


def _short(name: str) -> str:
    return drawn(name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…")
