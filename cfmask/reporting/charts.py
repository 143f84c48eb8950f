"""Charts of a report as inline SVG in the colours of the page around them.

The page's legend names the models; the pictures of a page do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, logit, ndtr, ndtri

from cfmask.errors import visible
from cfmask.evaluation.figures import Curve, Fit, Row
from cfmask.evaluation.results import Results
from cfmask.files import write_whole
from cfmask.reporting.escapes import drawing, drawn
from cfmask.reporting.front_figures import front_lines
from cfmask.reporting.svg import GLYPHS, LIGHT, Draw, Ink, svg_of

Scale = Literal["linear", "logit", "probit"]
SCALES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (lambda share: share, lambda value: value),
    "logit": (logit, expit),
    "probit": (ndtri, ndtr),
}
TICKS = np.array([0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5]) / 100
# Most models that can be told apart in one picture.
MOST_MODELS = len(GLYPHS)
# Fewest images of a bin that is drawn.
LEAST_IN_BIN = 10
# Most points of a line with markers.
FEW = 25


class Point(NamedTuple):
    """A model with its figures on the reference (x) and on the shift set (y)."""

    model: str
    x: Row
    y: Row


def points(report: Results, shift: str, reference: str) -> list[Point]:
    """Models that have an accuracy on both sets, in the order of the report."""
    cells = report.cells()
    pairs = [(m, cells.get((m, reference)), cells.get((m, shift))) for m in report.models]
    return [Point(model, x, y) for model, x, y in pairs if x is not None and y is not None]


def drawn_models(report: Results) -> dict[str, int]:
    """Models with a colour and marker, by the number of these; at most `MOST_MODELS`.

    Of the inner models of a curve of more than three only the chosen one has any.
    """
    long = [curve for curve in report.curves if len(curve.models) > 3]
    inside = {m for curve in long for m in curve.models[1:-1] if m != curve.chosen}
    kept = [model for model in report.models if model not in inside]
    return {model: i for i, model in enumerate(kept[:MOST_MODELS])}


def scatter(report: Results, shift: str, styles: dict[str, int], fit: Fit | None = None) -> str:
    """Accuracy on the reference against accuracy on a shift set or mean, with y = x, as SVG.

    Args:
        report: the figures; if no model has both, the text is empty.
        shift: name of the set or mean.
        styles: number of the colour and marker of each model; other models are small dots.
        fit: line to draw, which gives the axes their scale and the reference.
    """
    reference = fit.reference if fit else report.reference
    if not reference or not points(report, shift, reference):
        return ""
    label = f"Accuracy on {report.short(reference)} against accuracy on {report.short(shift)}"
    return svg_of(_scatter(report, shift, reference, styles, fit), (3.4, 3.1), label)


def trade_off(report: Results) -> Figure | None:
    """The first chart of the page, the mean under shift, as a matplotlib figure with a legend.

    It is None without a reference or shift set.
    """
    shift, reference = report.under_shift, report.reference
    if not shift or not reference or not points(report, shift, reference):
        return None
    styles = drawn_models(report)
    draw = _scatter(report, shift, reference, styles, None)
    return _alone(draw, (4.0, 4.3), styles, linestyle="none")


def _alone(draw: Draw, size: tuple[float, float], names: dict[str, int], **style: Any) -> Figure:
    """A drawing with a legend of names and the numbers of their looks, to stand alone."""
    with drawing(), rc_context(LIGHT.style()):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, LIGHT)
        for name, number in names.items():
            axes.plot([], [], **LIGHT.look(number), **style, label=drawn(name))
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figure


def save(figure: Figure | None, path: Path) -> bool:
    """Write a figure as a PNG; False if there is none."""
    if figure is None:
        return False
    with drawing(), rc_context(LIGHT.style()):
        write_whole(path, lambda file: figure.savefig(file, dpi=160, format="png"))
    return True


def fronts(report: Results) -> str:
    """Fronts with a band of one standard deviation over seeds, as SVG; empty without fronts."""
    if not report.fronts:
        return ""
    label = "Accuracy under shift at equal in-distribution accuracy"
    return svg_of(_fronts(report), (4.6, 3.4), label)


def fronts_alone(report: Results) -> Figure | None:
    """The fronts as a matplotlib figure with a legend; None without fronts."""
    names = {front.model: k for k, front in enumerate(report.fronts[:MOST_MODELS])}
    return _alone(_fronts(report), (5.0, 4.2), names) if names else None


def _fronts(report: Results) -> Draw:
    lines = list(front_lines(report))[:MOST_MODELS]

    def draw(axes: Axes, ink: Ink) -> None:
        for number, (_, across, mean, sd) in enumerate(lines):
            look = ink.look(number)
            axes.fill_between(across, mean - sd, mean + sd, color=look["color"], alpha=0.15, lw=0)
            axes.plot(across, mean, **look, linewidth=1.4, markersize=4, markevery=10)
        axes.grid()
        names = (visible(report.short(str(n))) for n in (report.reference, report.under_shift))
        axes.set(**{f"{axis}label": f"{name}, %" for axis, name in zip("xy", names)})

    return draw


def _scatter(
    report: Results, shift: str, reference: str, styles: dict[str, int], fit: Fit | None
) -> Draw:
    """Draws the models that have both figures."""
    found = points(report, shift, reference)
    scale: Scale = fit.transform if fit else "linear"

    def draw(axes: Axes, ink: Ink) -> None:
        limits = _limits(found, scale)
        _scaled(axes, limits, scale)
        axes.plot(limits, limits, ":", color=ink.muted, linewidth=1)
        if fit:
            _draw_fit(axes, fit, limits, ink)
        for curve in report.curves:
            path = [p for m in curve.models for p in found if p.model == m]
            ends = ([100 * p.x.value for p in path], [100 * p.y.value for p in path])
            axes.plot(*ends, color=ink.muted, linewidth=0.8, zorder=1.5)
        for point in found:
            _draw_point(axes, point, limits, styles.get(point.model), ink)
        across, up = (visible(report.short(name)) for name in (reference, shift))
        axes.set(xlabel=f"{across}, %", ylabel=f"{up}, %")

    return draw


def wise_curve(report: Results, curve: Curve, mean: str | None) -> str:
    """Accuracy by alpha: reference and `mean` under shift in colour, single sets in grey."""
    cells = report.cells()
    sets = [name for name in report.columns() if name in report.sets]
    both = ((report.reference, 0), (mean, 1))
    strong = {name: number for name, number in both if name is not None}

    def line(axes: Axes, name: str, **style: Any) -> None:
        values = [(a, cells.get((m, name))) for a, m in zip(curve.alphas, curve.models)]
        kept = [(a, 100 * row.value) for a, row in values if row is not None]
        if kept:
            axes.plot(*zip(*kept), **style)

    def draw(axes: Axes, ink: Ink) -> None:
        for name in sets:
            if name not in strong:
                line(axes, name, color=ink.muted, linewidth=0.7, alpha=0.6)
        for name, number in strong.items():
            line(axes, name, **ink.look(number), markersize=4, clip_on=False)
        if curve.chosen in curve.models:
            alpha = curve.alphas[curve.models.index(str(curve.chosen))]
            axes.axvline(alpha, color=ink.text, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylim(top=min(100, axes.get_ylim()[1]))
        axes.grid(axis="y")
        axes.set(xlabel="weight of the tuned model, α", ylabel="top-1 accuracy, %")

    return svg_of(draw, (4.6, 2.9), "Accuracy by weight of the tuned model")


def training(curves: Mapping[str, Sequence[Sequence[float]]], what: str) -> str:
    """Logged [step, value] of metrics, at most `MOST_MODELS`; `what` names the axis of values."""

    def draw(axes: Axes, ink: Ink) -> None:
        for number, points in enumerate(list(curves.values())[:MOST_MODELS]):
            look = ink.look(number)
            few = len(points) <= FEW
            steps, values = zip(*points)
            marker = {"marker": look["marker"], "markersize": 4, "clip_on": False} if few else {}
            axes.plot([s + 1 for s in steps], values, color=look["color"], linewidth=1.2, **marker)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        axes.set(xlabel="optimiser step", ylabel=what)

    return svg_of(draw, (4.6, 2.6), f"{what} by optimiser step")


def reliability(report: Results, shift: str, styles: dict[str, int]) -> str:
    """Confidence against accuracy in equal-width bins, one line a model.

    Bins of fewer than `LEAST_IN_BIN` images are left out.
    """
    lines = {m: _bins(report.details.get(m, {}).get(shift, {}).get("bins", {})) for m in styles}

    def draw(axes: Axes, ink: Ink) -> None:
        axes.plot([0, 100], [0, 100], ":", color=ink.muted, linewidth=1)
        for model, (confidence, accuracy) in lines.items():
            look = {**ink.look(styles[model]), "linewidth": 1.2, "markersize": 3.5}
            axes.plot(100 * confidence, 100 * accuracy, clip_on=False, **look)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set(xlabel="confidence, %", ylabel="accuracy, %")

    if not any(len(confidence) for confidence, _ in lines.values()):
        return ""
    return svg_of(draw, (2.6, 2.5), f"Reliability diagram of {report.short(shift)}")


def _bins(bins: dict[str, list[Any]]) -> tuple[Any, Any]:
    """Mean confidence and accuracy of the bins that hold enough images."""
    count, confidence, correct = (
        np.array(bins.get(key, []), dtype=float) for key in ("count", "confidence", "correct")
    )
    kept = count >= LEAST_IN_BIN
    return confidence[kept] / count[kept], correct[kept] / count[kept]


def _limits(found: Sequence[Point], scale: Scale) -> tuple[float, float]:
    """Ends of both axes in per cent, with a margin on the axes' scale."""
    forward, back = SCALES[scale]
    ends = [end for p in found for row in (p.x, p.y) for end in (row.value, row.low, row.high)]
    shares = np.clip([end for end in ends if end is not None], 0.004, 0.996)
    low, high = forward(shares.min()), forward(shares.max())
    room = 0.06 * (high - low) or 0.05
    low, high = back(low - room), back(high + room)
    return 100 * max(float(low), 0.0), 100 * min(float(high), 1.0)


def _scaled(axes: Axes, limits: tuple[float, float], scale: Scale) -> None:
    """Set square axes in per cent, of the same scale in both directions."""
    axes.set_aspect("equal", adjustable="box") if scale == "linear" else axes.set_box_aspect(1)
    if scale != "linear":
        forward, back = SCALES[scale]
        pair = (lambda v: forward(np.clip(v / 100, 1e-6, 1 - 1e-6)), lambda v: 100 * back(v))
        kept = [100 * tick for tick in TICKS if limits[0] <= 100 * tick <= limits[1]]
        for axis, put in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            put("function", functions=pair)
            axis.set_ticks(kept, [f"{tick:g}" for tick in kept])
            axis.set_ticks([], minor=True)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set(xlim=limits, ylim=limits)
    axes.grid()
    axes.set_axisbelow(True)


def _draw_fit(axes: Axes, fit: Fit, limits: tuple[float, float], ink: Ink) -> None:
    """The fitted line: solid in the range of its models, dashed beyond."""
    forward, back = SCALES[fit.transform]
    low, high = forward(np.clip(np.array(limits) / 100, 1e-4, 1 - 1e-4))
    x = np.linspace(low, high, 200)
    share, y = 100 * back(x), 100 * back(fit.slope * x + fit.intercept)
    axes.plot(share, y, "--", color=ink.muted, linewidth=0.9)
    least, most = 0.0 if fit.low is None else fit.low, 1.0 if fit.high is None else fit.high
    inside = (share >= 100 * least) & (share <= 100 * most)
    axes.plot(share[inside], y[inside], color=ink.muted, linewidth=1.3)


def _draw_point(
    axes: Axes, point: Point, limits: tuple[float, float], number: int | None, ink: Ink
) -> None:
    """A model with its intervals; a small dot if it has no style.

    Values beyond the axes are drawn at their edge, with an unclipped marker.
    """
    x, y = (float(np.clip(100 * row.value, *limits)) for row in (point.x, point.y))
    if number is None:
        axes.plot(x, y, "o", color=ink.muted, markersize=2.5, clip_on=False)
        return
    across, up = (np.clip(_ends(row), *limits) for row in (point.x, point.y))
    look = ink.look(number)
    axes.plot(across, [y, y], color=look["color"], linewidth=1, zorder=3)
    axes.plot([x, x], up, color=look["color"], linewidth=1, zorder=3)
    axes.plot(x, y, **look, linestyle="none", markersize=5.5, zorder=3, clip_on=False)


def _ends(row: Row) -> list[float]:
    """Both ends of the interval in per cent; the figure itself where it has none."""
    return [100 * (row.value if end is None else end) for end in (row.low, row.high)]
