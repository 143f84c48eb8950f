"""View charts: what models say to views of the images of each set, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cfmask.evaluation.figures import Row
from cfmask.evaluation.metrics import described
from cfmask.evaluation.results import Results
from cfmask.reporting.panels import Panel, Series, svg
from cfmask.reporting.tables import heading

# Figures of a view on a set, by model and column.
Found = dict[str, dict[str, Row]]


def view_charts(report: Results, styles: Mapping[str, int]) -> Iterator[list[dict[str, Any]]]:
    """For each set a chart of each view, with 95 % intervals of every drawn model.

    A view along numbers, such as `structure`, is a curve, another one bars of its shares; what is
    no share stands below as words.
    """
    views = report.protocol.get("views") or {}
    cells = {column: report.cells(column) for view in views.values() for column in view["columns"]}
    # As in tables, without the single severities of corruptions.
    for shift in filter(report.sets.__contains__, report.columns()):
        charts = []
        for name, view in views.items():
            found: Found = {}
            for model in styles:
                at = model, shift
                own = {c: cells[c][at] for c in view["columns"] if at in cells[c]}
                if own:
                    found[model] = own
            if found:
                charts.append(_chart(report, shift, name, view, found, styles))
        if charts:
            yield charts


def _chart(
    report: Results,
    shift: str,
    name: str,
    view: Mapping[str, Any],
    found: Found,
    styles: Mapping[str, int],
) -> dict[str, Any]:
    metrics = {column: described(column, report.protocol) for column in view["columns"]}
    # A model may lack columns, such as those of features.
    everyone = [c for c in metrics if all(c in own for own in found.values())]
    shares = [column for column in everyone if metrics[column].unit == "%"]
    curve = len(view["places"]) == len(shares) > 1
    places = view["places"] if curve else [column.rpartition("/")[2] for column in shares]
    series = [_series(styles[model], [own[c] for c in shares]) for model, own in found.items()]
    title = f"{name} on {report.short(shift)}"
    panel = Panel(title, "images, %", places, series, view["across"] * curve, (0, 100))
    words = "; ".join(
        f"{metric.title}: "
        + ", ".join(f"{m} {metric.text(own[c].value)}" for m, own in found.items() if c in own)
        for c, metric in metrics.items()
        if c not in shares and any(c in own for own in found.values())
    )
    drawing = Markup(svg(panel)) if shares else ""
    return {"name": f"{heading(report, shift)}: {name}", "svg": drawing, "words": words}


def _series(number: int, rows: Sequence[Row]) -> Series:
    ends = [(100 * r.low, 100 * r.high) for r in rows if r.low is not None and r.high is not None]
    # Own code may give figures without intervals.
    ends = ends if len(ends) == len(rows) else []
    values = [100 * row.value for row in rows]
    return Series(number, values, [low for low, _ in ends], [high for _, high in ends])
