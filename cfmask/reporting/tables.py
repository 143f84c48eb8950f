"""Tables: figures of models by sets, as tables and as the text of files.

Figures are rounded only here; the CSV has full precision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cfmask.evaluation.figures import MEAN, Row, Spread
from cfmask.evaluation.metrics import METRICS, Metric, described
from cfmask.evaluation.results import LEVEL, Results
from cfmask.reporting.escapes import csv_cell, latex, markdown
from cfmask.reporting.front_figures import front_tables
from cfmask.reporting.rendering import BELOW, Cell, Column, Table
from cfmask.shifts.combinations import COMBINATIONS

# After the name of a set that is not whole, and after an accuracy that differs significantly.
INCOMPLETE, DIFFERS = "*", "†"
# Columns of the long form, a row for each figure.
FIELDS = ("model", "shift", "metric", "value", "low", "high", "correct", "total", "note")


def metrics_of(report: Results) -> list[str]:
    """Names of the metrics that have figures, in the order of `METRICS` and then of the report."""
    found = dict.fromkeys(row.metric for row in report.rows)
    return [*(name for name in METRICS if name in found), *(n for n in found if n not in METRICS)]


def tables(report: Results) -> list[Table]:
    """A table for each metric that has figures, without the parts of large collections."""
    return [table_of(report, name) for name in metrics_of(report)]


def spread_tables(report: Results) -> list[Table]:
    """A table over seeds for each metric that has one."""
    made = [spread_table(report, name) for name in metrics_of(report)]
    return [table for table in made if table.rows]


def table_of(report: Results, name: str = "accuracy") -> Table:
    """Models by sets: the figures of a metric with their intervals; without rows if it has none."""
    metric, shifts = described(name, report.protocol), report.columns(name)
    cells = report.cells(name)
    models = [model for model in report.models if any((model, s) in cells for s in shifts)]
    best = _best(metric, cells)
    rows = [
        [
            Cell(model, remark=_chosen(report, model)),
            *(_cell(report, metric, cells.get((model, s)), (model, s) in best) for s in shifts),
        ]
        for model in models
    ]
    notes = footnotes(report, name, BELOW)
    return Table(metric.heading, _columns(report, shifts), [rows], notes, name, metric.meaning)


def _columns(report: Results, shifts: Sequence[str]) -> list[Column]:
    """The models' names, then a column for each set."""
    partly = incomplete(report)
    return [Column("model", True)] + [
        Column(heading(report, s), partly=s in partly, rank=_rank(report, s, place))
        for place, s in enumerate(shifts, 1)
    ]


def spread_table(report: Results, name: str = "accuracy") -> Table:
    """Mean ± standard deviation of runs that differ by their seed alone, and their gains."""
    metric = described(name, report.protocol)
    gains = replace(metric, signed=True)
    shifts = report.columns(name)
    cells = {(s.model, s.shift): s for s in report.spreads if s.metric == name}
    rows = []
    for model in dict.fromkeys(model for model, _ in cells):
        own = [cells.get((model, shift)) for shift in shifts]
        runs = max(len(spread.models) for spread in own if spread)
        head = Cell(model, remark=f"{runs} seeds")
        rows.append([head, *(_spread(spread, metric, gains) for spread in own)])
    notes = ["±: standard deviation over seeds."]
    if any(spread.gain is not None for spread in cells.values()):
        notes = [f"{notes[0]} {BELOW}: gain of each run over its own start."]
    title = f"Over seeds: {metric.heading}"
    return Table(title, _columns(report, shifts), [rows] if rows else [], notes, name)


def _spread(spread: Spread | None, metric: Metric, gains: Metric) -> Cell:
    if spread is None:
        return Cell("")
    below = ""
    if spread.gain is not None and spread.gain_sd is not None:
        below = f"{gains.text(spread.gain)} ± {metric.text(spread.gain_sd)}"
    return Cell(f"{metric.text(spread.mean)} ± {metric.text(spread.sd)}", below=below)


def _rank(report: Results, shift: str, place: int) -> int:
    """Rank of a column: combinations but the mean are left out first, then the last sets."""
    if shift == report.reference:
        return 0
    if shift == MEAN:
        return 1
    return place + 1 if shift in report.sets else 1000 + place


def _chosen(report: Results, model: str) -> str:
    """A remark on a model that was chosen from a curve of several alphas."""
    long = [curve for curve in report.curves if len(curve.models) > 3 and curve.chosen == model]
    return f"chosen by {report.short(long[0].chosen_on or '')}" if long else ""


def _cell(report: Results, metric: Metric, row: Row | None, best: bool) -> Cell:
    if row is None:
        return Cell("")
    ends = [metric.text(end) for end in (row.low, row.high) if end is not None]
    mark = DIFFERS if report.differs(row) else ""
    return Cell(metric.text(row.value), mark, "–".join(ends), best=best, hint=row.note)


def _best(metric: Metric, cells: Mapping[tuple[str, str], Row]) -> set[tuple[str, str]]:
    """Model and set of each figure that is the best of several models'."""
    found = set()
    for shift in dict.fromkeys(shift for _, shift in cells):
        column = {model: row.value for (model, s), row in cells.items() if s == shift}
        better = metric.better * direction(shift)
        most = max(value * better for value in column.values())
        if better and len(column) > 1:
            found |= {(model, shift) for model, value in column.items() if value * better == most}
    return found


def direction(shift: str) -> int:
    """1 if more is better on a set or combination, -1 if less is, 0 for a drop between sets.

    A drop is small for a robust model and for a poor one alike.
    """
    of = COMBINATIONS.get(shift)
    weights = [1.0] if of is None else list(of.weights.values())
    return int(min(weights) > 0) - int(max(weights) < 0)


def incomplete(report: Results) -> dict[str, str]:
    """Sets and combinations that are not whole, and what they lack in words, in protocol order."""
    words = {name: _missing(report.sets[name]) for name in report.incomplete}
    for name, parts in report.protocol.get("means", {}).items():
        partly = [report.short(part) for part in parts if part in words]
        if partly:
            words[name] = f"made of sets that are not whole: {', '.join(partly)}"
    return words


def _missing(rule: dict[str, Any]) -> str:
    """Found and expected size, and the number of unreadable images, in words."""
    words, size = [], rule.get("size", {})
    if not size.get("complete", True):
        found, expected = size["found"], size["expected"]
        words += [f"{found[key]:,} of {expected[key]:,} {key}" for key in ("images", "classes")]
    broken = len(rule.get("unreadable", []))
    if broken:
        words.append(f"{broken:,} unreadable image{'s' * (broken > 1)} counted as wrong")
    return ", ".join(words)


def heading(report: Results, shift: str) -> str:
    """Name of a set as a column's head: the reference and sets that are not whole are marked."""
    mark = INCOMPLETE if shift in incomplete(report) else ""
    return f"{report.short(shift)}{mark}" + " (ID)" * (shift == report.reference)


def footnotes(report: Results, metric: str | None = None, place: str = "In brackets") -> list[str]:
    """Footnotes of the table of a metric, or of all tables, one sentence each.

    `place` says where the tables have the intervals.
    """
    rows = report.rows if metric is None else report.of(metric)
    shown = {row.shift for row in rows}
    parts = {name: words for name, words in incomplete(report).items() if name in shown}
    notes = [
        f"{INCOMPLETE} {report.short(name)} is not whole: {words}." for name, words in parts.items()
    ]
    if any(map(report.differs, rows)):
        test = f"exact McNemar test on the same images, p < {LEVEL}"
        notes.append(f"{DIFFERS} {report.against()} ({test}).")
    interval = report.protocol.get("interval")
    if interval and any(row.low is not None for row in rows):
        notes.append(f"{place}: its interval, {interval}.")
    return notes


def records(report: Results) -> list[dict[str, Any]]:
    """A record for each figure: unrounded value, as a fraction, with counts and completeness."""
    partly = incomplete(report)
    return [
        {name: getattr(row, name) for name in FIELDS} | {"complete": row.shift not in partly}
        for row in report.rows
    ]


def as_csv(report: Results) -> str:
    """The records, one a line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*FIELDS, "complete"])
    for record in records(report):
        values = [csv_cell(record[name]) for name in FIELDS]
        writer.writerow([*values, str(record["complete"]).lower()])
    return stream.getvalue()


def _all(report: Results) -> list[Table]:
    return [*tables(report), *spread_tables(report), *front_tables(report)]


def as_markdown(report: Results) -> str:
    """A table for each metric, then the footnotes."""
    parts = [table.markdown() for table in _all(report)]
    notes = "\n".join(f"- {markdown(note)}" for note in footnotes(report))
    return "\n\n".join([*parts, notes]).rstrip() + "\n"


def as_latex(report: Results) -> str:
    r"""A `tabular` of booktabs for each metric, a line for each row."""
    parts = [table.latex() for table in _all(report)]
    notes = "\n".join(f"% {latex(note)}" for note in footnotes(report))
    return "\n\n".join([r"% Needs \usepackage{booktabs}.", *parts, notes]).rstrip() + "\n"
