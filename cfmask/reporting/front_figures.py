"""Front figures: models at equal in-distribution accuracy, as tables and as a chart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cfmask.evaluation.figures import Front, Gap
from cfmask.evaluation.fronts import common_range, envelopes_of, mean_front
from cfmask.evaluation.metrics import Metric
from cfmask.evaluation.results import Results
from cfmask.reporting.rendering import BELOW, Cell, Column, Table

SHARE, POINTS = Metric("Share"), Metric("Difference", unit="points", signed=True)
# Points of a line in the chart.
GRID = 81


def front_tables(report: Results) -> list[Table]:
    """Fronts at equal in-distribution accuracy, then the gap of each two; none without fronts."""
    return [_fronts(report), _gaps(report)] if report.fronts else []


def _fronts(report: Results) -> Table:
    levels = sorted({level for front in report.fronts for level in front.levels})
    columns = [Column("front", True)] + [
        Column(f"at {100 * level:g} %", rank=len(levels) - k) for k, level in enumerate(levels)
    ]
    rows = []
    for front in report.fronts:
        own = dict(zip(front.levels, zip(front.values, front.sds)))
        head = Cell(front.model, remark=_runs(front))
        rows.append([head, *(_height(*own.get(level, (None, None))) for level in levels)])
    reference, shift = (report.short(str(n)) for n in (report.reference, report.under_shift))
    notes = ["±: standard deviation over seeds."] if any(_sds(report)) else []
    if not levels:
        notes.append("No in-distribution accuracy is reached by all of them.")
    title = f"Fronts: {shift} at equal accuracy on {reference}, %"
    return Table(title, columns, [rows], notes, "fronts", _MEANING)


_MEANING = (
    "accuracy under shift of the weights between the starting point and each tuned model, "
    "interpolated on its curve"
)


def _runs(front: Front) -> str:
    return f"{len(front.curves)} seeds" if len(front.curves) > 1 else ""


def _sds(report: Results) -> Iterator[bool]:
    return (sd is not None for front in report.fronts for sd in front.sds)


def _height(value: float | None, sd: float | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell(SHARE.text(value) + ("" if sd is None else f" ± {SHARE.text(sd)}"))


def _gaps(report: Results) -> Table:
    columns = [
        Column("front", True),
        Column("against", True),
        Column("points"),
        Column("p, Holm", rank=1),
        Column("between", rank=2),
        Column("interval of", True, rank=3),
    ]
    rows = [_gap(gap) for gap in report.gaps]
    notes = [f"{BELOW}: its 95 % interval."] if any(g.low is not None for g in report.gaps) else []
    if not rows:
        notes.append("No two of them share a range of in-distribution accuracy and a seed.")
    notes.append("p: that there is no gap, two-sided, by Holm's correction over this table.")
    title = "Area between two fronts by its width, in points under shift"
    return Table(title, columns, [rows] if rows else [], notes, "gaps")


def _gap(gap: Gap) -> list[Cell]:
    ends = "" if gap.low is None or gap.high is None else f"{POINTS.text(gap.low)} to "
    ends += POINTS.text(gap.high) if ends and gap.high is not None else ""
    p_value = "" if gap.adjusted is None else f"{gap.adjusted:.3f}"
    return [
        Cell(gap.second),
        Cell(gap.first),
        Cell(POINTS.text(gap.value), below=ends),
        Cell("< 0.001" if p_value == "0.000" else p_value),
        Cell(f"{SHARE.text(gap.begins)}–{SHARE.text(gap.ends)} %"),
        Cell(gap.how),
    ]


def front_lines(report: Results) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each front its name, in-distribution accuracies, and mean and deviation, in per cent."""
    for front in report.fronts:
        own = envelopes_of(report, front)
        shared = common_range(own)
        if shared is not None:
            grid = np.linspace(*shared, GRID)
            mean, sd = (np.array(v, dtype=float) for v in mean_front(own, list(grid)))
            yield front.model, 100 * grid, 100 * mean, 100 * np.nan_to_num(sd)
