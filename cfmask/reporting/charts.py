"""Figures: charts of a report as inline SVG whose colours are those of the page around it.

Colours are CSS variables (`--ink`, `--muted`, `--rule`, `--series-0` …), so that one picture serves
light, dark and print. Model names stand in the page's legend, never in a picture.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, logit, ndtr, ndtri

from cfmask.errors import visible
from cfmask.evaluation.figures import Curve, Fit, Row
from cfmask.reporting.escapes import drawing
from cfmask.reporting.report import ShiftReport

Scale = Literal["linear", "logit", "probit"]
SCALES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (lambda share: share, lambda value: value),
    "logit": (logit, expit),
    "probit": (ndtri, ndtr),
}
TICKS = np.array([0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5]) / 100
# Matplotlib wants colours; each stands for a variable of the page and is replaced by it.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#05050{i}" for i in range(6)]
MARKERS = ["o", "s", "^", "D", "v", "P"]
GLYPHS = ["●", "■", "▲", "◆", "▼", "✚"]
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
# A bin of fewer images says too little to be drawn.
LEAST_IN_BIN = 10
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cfmask",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.4,
}


@dataclass(frozen=True)
class Point:
    """A model in distribution and under shift.

    Attributes:
        model: its name.
        x: its figure on the reference.
        y: its figure on the shift set.
    """

    model: str
    x: Row
    y: Row


def points(report: ShiftReport, shift: str, reference: str) -> list[Point]:
    """Models that have an accuracy on both sets, in the order of the report."""
    cells = {(row.model, row.shift): row for row in report.of("accuracy")}
    pairs = [(m, cells.get((m, reference)), cells.get((m, shift))) for m in report.models]
    return [Point(model, x, y) for model, x, y in pairs if x is not None and y is not None]


def scatter(report: ShiftReport, shift: str, styles: dict[str, int], fit: Fit | None = None) -> str:
    """Accuracy on the reference against accuracy on a shift set, with y = x.

    Args:
        report: the figures.
        shift: name of the set or mean.
        styles: number of the colour and marker of each model; other models are small dots.
        fit: line to draw; the axes are on its scale, and the reference is its own.

    Returns:
        SVG text; empty if no model has both figures.
    """
    reference = fit.reference if fit else report.reference
    found = points(report, shift, reference) if reference else []
    if not found:
        return ""
    scale: Scale = fit.transform if fit else "linear"
    across, up = (visible(report.short(name or "")) for name in (reference, shift))

    def draw(axes: Axes) -> None:
        limits = _limits(found, scale)
        _scaled(axes, limits, scale)
        axes.plot(limits, limits, ":", color=MUTED, linewidth=1)
        if fit:
            _draw_fit(axes, fit, limits)
        for curve in report.curves:
            _draw_path(axes, [p for m in curve.models for p in found if p.model == m])
        for point in found:
            _draw_point(axes, point, styles.get(point.model))
        axes.set(xlabel=f"{across}, %", ylabel=f"{up}, %")

    return _svg(draw, (3.4, 3.1), f"Accuracy on {across} against accuracy on {up}")


def wise_curve(report: ShiftReport, curve: Curve, mean: str | None) -> str:
    """Accuracy by alpha: reference and mean under shift in full, single sets in grey.

    Args:
        report: the figures.
        curve: the models between two.
        mean: name of the mean under shift, if there is one.
    """
    cells = {(row.model, row.shift): row.value for row in report.of("accuracy")}
    sets = [name for name in report.columns() if name in report.protocol.get("sets", {})]
    both = ((report.reference, 0), (mean, 1))
    strong = {name: number for name, number in both if name is not None}

    def line(axes: Axes, name: str, **style: Any) -> None:
        values = [(a, cells.get((m, name))) for a, m in zip(curve.alphas, curve.models)]
        kept = [(a, 100 * v) for a, v in values if v is not None]
        if kept:
            axes.plot(*zip(*kept), **style)

    def draw(axes: Axes) -> None:
        for name in sets:
            if name not in strong:
                line(axes, name, color=MUTED, linewidth=0.7, alpha=0.6)
        for name, number in strong.items():
            line(axes, name, **_look(number), markersize=4)
        if curve.chosen in curve.models:
            alpha = curve.alphas[curve.models.index(str(curve.chosen))]
            axes.axvline(alpha, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.grid(axis="y")
        axes.set(xlabel="weight of the tuned model, α", ylabel="top-1 accuracy, %")

    return _svg(draw, (4.6, 2.9), "Accuracy by weight of the tuned model")


def reliability(report: ShiftReport, shift: str, styles: dict[str, int]) -> str:
    """Confidence against accuracy in equal-width bins, one line a model.

    Bins of fewer than `LEAST_IN_BIN` images are left out.
    """
    lines = {m: _bins(report.details.get(m, {}).get(shift, {}).get("bins", {})) for m in styles}

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], ":", color=MUTED, linewidth=1)
        for model, (confidence, accuracy) in lines.items():
            look = {**_look(styles[model]), "linewidth": 1.2, "markersize": 3.5}
            axes.plot(100 * confidence, 100 * accuracy, clip_on=False, **look)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set(xlabel="confidence, %", ylabel="accuracy, %")

    if not any(len(confidence) for confidence, _ in lines.values()):
        return ""
    return _svg(draw, (2.6, 2.5), f"Reliability diagram of {report.short(shift)}")


def _bins(bins: dict[str, list[Any]]) -> tuple[Any, Any]:
    """Mean confidence and accuracy of the bins that hold enough images."""
    count, confidence, correct = (
        np.array(bins.get(key, []), dtype=float) for key in ("count", "confidence", "correct")
    )
    kept = count >= LEAST_IN_BIN
    return confidence[kept] / count[kept], correct[kept] / count[kept]


def _look(number: int) -> dict[str, Any]:
    number %= len(SERIES)
    return {"color": SERIES[number], "marker": MARKERS[number]}


def _limits(found: Sequence[Point], scale: Scale) -> tuple[float, float]:
    """Both ends of both axes in per cent, with some room on the axes' own scale."""
    forward, back = SCALES[scale]
    ends = [end for p in found for row in (p.x, p.y) for end in (row.value, row.low, row.high)]
    shares = np.clip([end for end in ends if end is not None], 0.004, 0.996)
    low, high = forward(shares.min()), forward(shares.max())
    room = 0.06 * (high - low) or 0.05
    low, high = back(low - room), back(high + room)
    return 100 * max(float(low), 0.0), 100 * min(float(high), 1.0)


def _scaled(axes: Axes, limits: tuple[float, float], scale: Scale) -> None:
    """Axes in per cent on a scale, square, alike in both directions."""
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


def _draw_fit(axes: Axes, fit: Fit, limits: tuple[float, float]) -> None:
    """The fitted line: full where its models lie, dashed beyond."""
    forward, back = SCALES[fit.transform]
    low, high = forward(np.clip(np.array(limits) / 100, 1e-4, 1 - 1e-4))
    x = np.linspace(low, high, 200)
    share, y = 100 * back(x), 100 * back(fit.slope * x + fit.intercept)
    axes.plot(share, y, "--", color=MUTED, linewidth=0.9)
    least, most = 0.0 if fit.low is None else fit.low, 1.0 if fit.high is None else fit.high
    inside = (share >= 100 * least) & (share <= 100 * most)
    axes.plot(share[inside], y[inside], color=MUTED, linewidth=1.3)


def _draw_path(axes: Axes, path: Sequence[Point]) -> None:
    axes.plot(
        [100 * p.x.value for p in path],
        [100 * p.y.value for p in path],
        color=MUTED,
        linewidth=0.8,
        zorder=1.5,
    )


def _draw_point(axes: Axes, point: Point, number: int | None) -> None:
    """A model with its intervals; a small dot if it has no style of its own."""
    x, y = 100 * point.x.value, 100 * point.y.value
    if number is None:
        axes.plot(x, y, "o", color=MUTED, markersize=2.5)
        return
    axes.errorbar(
        x,
        y,
        xerr=_reach(point.x),
        yerr=_reach(point.y),
        **_look(number),
        linestyle="none",
        markersize=5.5,
        elinewidth=1,
        zorder=3,
    )


def _reach(row: Row) -> list[list[float]]:
    """How far the interval reaches below and above the figure, in per cent."""
    low = row.value if row.low is None else row.low
    high = row.value if row.high is None else row.high
    # A mean of perfect accuracies may be above 1 by the last bit.
    return [[max(0.0, 100 * (row.value - low))], [max(0.0, 100 * (high - row.value))]]


def _svg(draw: Callable[[Axes], None], size: tuple[float, float], label: str) -> str:
    """SVG text of what `draw` puts on the axes, for the body of a page."""
    stream = io.StringIO()
    with drawing(), rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_page(stream.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    """An SVG file as an element: themed, without fixed size, namespaces or ids of others."""
    label = visible(label)
    body = svg[svg.index("<svg") :]
    opening, _, rest = body.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', opening)
    rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", rest, count=1, flags=re.S)
    rest = re.sub(r"font-family: [^;\"]*;?", "", rest)
    rest = re.sub(r' id="(?:[\w.]+_\d+)"', "", rest)
    # A number of the picture and its label keeps the names of its parts apart from those of others.
    own = f"{zlib.crc32((label + rest).encode()):x}"
    rest = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>c{own}-", rest)
    for colour, name in VARIABLES.items():
        rest = rest.replace(colour, f"var(--{name})")
    rest = re.sub(r"\s+", " ", rest)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" {box}>{rest.strip()}'
