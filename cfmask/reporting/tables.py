"""Tables: a report's figures, models by sets -> CSV, Markdown and LaTeX text.

Figures are rounded here and nowhere else; the CSV holds them whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cfmask.evaluation.figures import Row
from cfmask.evaluation.metrics import METRICS, Metric, described
from cfmask.reporting.escapes import csv_cell, latex, markdown
from cfmask.reporting.report import LEVEL, ShiftReport
from cfmask.shifts.combinations import COMBINATIONS

# After the name of a set that is not whole, and after a figure that chance does not explain.
INCOMPLETE, DIFFERS = "*", "†"


@dataclass(frozen=True)
class Grid:
    """Figures of one metric.

    Attributes:
        metric: how they are shown.
        name: of the metric.
        models: names of the rows.
        shifts: names of the columns.
        cells: figure by (model, shift); not every model need have every set.
    """

    metric: Metric
    name: str
    models: list[str]
    shifts: list[str]
    cells: dict[tuple[str, str], Row]

    @property
    def short(self) -> str:
        """The title, to stand in a line with others."""
        title = self.metric.title
        return title if title[:2].isupper() else title[:1].lower() + title[1:]

    def figure(self, model: str, shift: str) -> str:
        """Text of a figure; empty if there is none."""
        row = self.cells.get((model, shift))
        return "" if row is None else self.metric.text(row.value)

    def interval(self, model: str, shift: str) -> str:
        """Text of a figure's interval, low to high; empty if there is none."""
        row = self.cells.get((model, shift))
        if row is None or row.low is None or row.high is None:
            return ""
        return f"{self.metric.text(row.low)}–{self.metric.text(row.high)}"

    def is_best(self, model: str, shift: str) -> bool:
        """Whether no model of several has a better figure on the set."""
        column = [self.cells[m, shift].value for m in self.models if (m, shift) in self.cells]
        row, better = self.cells.get((model, shift)), self.metric.better * direction(shift)
        if row is None or better == 0 or len(column) < 2:
            return False
        return row.value * better == max(value * better for value in column)


def direction(shift: str) -> int:
    """1 if more is better on a set or combination, -1 if less is, 0 if neither is by itself.

    A drop between two sets is small for a robust model and for a poor one alike.
    """
    of = COMBINATIONS.get(shift)
    weights = [1.0] if of is None else list(of.weights.values())
    return int(min(weights) > 0) - int(max(weights) < 0)


def grids(report: ShiftReport) -> list[Grid]:
    """One grid for each metric, in the order of `METRICS` and then of the report.

    Sets that are parts of a large collection are left to the CSV and the JSON.
    """
    found = dict.fromkeys(row.metric for row in report.rows)
    order = [name for name in METRICS if name in found]
    return [_grid(report, name) for name in [*order, *(m for m in found if m not in METRICS)]]


def _grid(report: ShiftReport, metric: str) -> Grid:
    rows = [row for row in report.rows if row.metric == metric]
    models = list(dict.fromkeys(row.model for row in rows))
    cells = {(row.model, row.shift): row for row in rows}
    shown = described(metric, report.protocol)
    return Grid(shown, metric, models, report.columns(metric), cells)


def incomplete(report: ShiftReport) -> dict[str, str]:
    """Sets and combinations that are not whole, with what is wrong; empty if all are.

    Returns:
        Words by name of the set or combination, in the order of the protocol.
    """
    sets: dict[str, dict[str, Any]] = report.protocol.get("sets", {})
    words = {name: _missing(sets[name]) for name in report.incomplete}
    for name, parts in report.protocol.get("means", {}).items():
        partly = [report.short(part) for part in parts if part in words]
        if partly:
            words[name] = f"made of sets that are not whole: {', '.join(partly)}"
    return words


def _missing(rule: dict[str, Any]) -> str:
    """How much was found of how much, and what could not be read."""
    words, size = [], rule.get("size", {})
    if not size.get("complete", True):
        found, expected = size["found"], size["expected"]
        words += [f"{found[key]:,} of {expected[key]:,} {key}" for key in ("images", "classes")]
    broken = len(rule.get("unreadable", []))
    if broken:
        words.append(f"{broken:,} unreadable image{'s' * (broken > 1)} counted as wrong")
    return ", ".join(words)


def heading(report: ShiftReport, shift: str) -> str:
    """Name of a set as a column's head: the reference and sets that are not whole are marked."""
    mark = INCOMPLETE if shift in incomplete(report) else ""
    return f"{report.short(shift)}{mark}" + " (ID)" * (shift == report.reference)


def footnotes(report: ShiftReport, place: str = "In brackets") -> list[str]:
    """What must be said below a table, one sentence an entry; `place` is where intervals stand."""
    parts = incomplete(report).items()
    notes = [f"{INCOMPLETE} {report.short(name)} is not whole: {words}." for name, words in parts]
    if any(map(report.differs, report.rows)):
        test = f"exact McNemar test on the same images, p < {LEVEL}"
        notes.append(f"{DIFFERS} {report.against()} ({test}).")
    interval = report.protocol.get("interval")
    return [*notes, f"{place}: its interval, {interval}."] if interval else notes


def as_csv(report: ShiftReport) -> str:
    """One line a figure, values whole and as fractions, with counts and completeness."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = ("model", "shift", "metric", "value", "low", "high", "correct", "total", "note")
    writer.writerow([*fields, "complete"])
    partly = incomplete(report)
    for row in report.rows:
        values = [getattr(row, name) for name in fields]
        whole = "false" if row.shift in partly else "true"
        writer.writerow([*map(csv_cell, values), whole])
    return stream.getvalue()


def as_markdown(report: ShiftReport) -> str:
    """A table for each metric, then the footnotes."""
    parts = [_markdown_table(report, grid) for grid in grids(report)]
    notes = [f"- {markdown(note)}" for note in footnotes(report)]
    return "\n\n".join([*parts, "\n".join(notes)]).rstrip() + "\n"


def _markdown_table(report: ShiftReport, grid: Grid) -> str:
    head = ["model", *(markdown(heading(report, shift)) for shift in grid.shifts)]
    lines = [head, ["---", *("---:" for _ in grid.shifts)]]
    for model in grid.models:
        cells = [_bracketed(report, grid, model, shift, "**{}**") for shift in grid.shifts]
        lines.append([markdown(model), *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{markdown(grid.metric.heading)}**\n\n{table}"


def _bracketed(report: ShiftReport, grid: Grid, model: str, shift: str, bold: str) -> str:
    """Figure, in bold if it is the best, its mark, and its interval in brackets."""
    figure, interval = grid.figure(model, shift), grid.interval(model, shift)
    shown = bold.format(figure) if grid.is_best(model, shift) else figure
    row = grid.cells.get((model, shift))
    shown += DIFFERS if row is not None and report.differs(row) else ""
    return f"{shown} [{interval}]" if interval else shown


def as_latex(report: ShiftReport) -> str:
    r"""A `tabular` in the manner of booktabs for each metric; rows can be taken one by one."""
    lines = [r"% Needs \usepackage{booktabs}."]
    for grid in grids(report):
        lines += ["", f"% {latex(grid.metric.heading)}", *_latex_table(report, grid)]
    notes = [f"% {latex(note)}" for note in footnotes(report)]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _latex_table(report: ShiftReport, grid: Grid) -> Iterator[str]:
    yield rf"\begin{{tabular}}{{l{'r' * len(grid.shifts)}}}"
    yield r"\toprule"
    yield _latex_row(["model", *(heading(report, shift) for shift in grid.shifts)])
    yield r"\midrule"
    for model in grid.models:
        cells = [_latex_cell(report, grid, model, shift) for shift in grid.shifts]
        yield " & ".join([_row_start(latex(model)), *cells]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(latex, texts)) + r" \\"


def _latex_cell(report: ShiftReport, grid: Grid, model: str, shift: str) -> str:
    cell = latex(_bracketed(report, grid, model, shift, "\ue000{}\ue001"))
    return cell.replace("\ue000", r"\textbf{").replace("\ue001", "}")


def _row_start(cell: str) -> str:
    """A first cell that is no argument of the line break before it."""
    return f"{{}}{cell}" if cell[:1] in ("[", "*") else cell
