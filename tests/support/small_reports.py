"""Reports of a few figures."""

from __future__ import annotations

import io
import re

from rich.console import Console

from cfmask import ShiftReport
from cfmask.evaluation.figures import Curve, Difference, Fit, Row
from support.reports import size


def small_report() -> ShiftReport:
    rows = [
        Row("zero-shot", "id", "accuracy", 0.8125, 13, 16, 0.5439, 0.9598),
        Row("tuned", "id", "accuracy", 1.0, 16, 16, 0.7941, 1.0),
        Row("zero-shot", "mean of shifts", "accuracy", 0.333333333333333, None, None, 0.2, 0.4),
        Row("tuned", "sketch", "accuracy", 0.25, 4, 16, 0.0727, 0.5238),
    ]
    return ShiftReport(rows, {"means": {"mean of shifts": ["sketch"]}, "Ünï": [1, None]}, "id")


def full_report() -> ShiftReport:
    """A report that has something of everything."""
    sets = {"id": {}, "sketch": {"size": size(8)}, "noise 1": {"part_of": "c"}}
    ten = {"names": ["ant", "bee", "cat"], "correct": [3, 0, 4], "total": [4, 2, 4]}
    bins = {key: [1] * 15 for key in ("count", "confidence", "correct")}
    rows = [
        *small_report().rows,
        Row("tuned", "noise 1", "accuracy", 0.5, 8, 16, 0.2, 0.8),
        Row("tuned", "sketch", "nll", 1.23456, low=1.1, high=1.3),
        Row("tuned", "sketch", "ece", 0.0625),
        Row("tuned", "sketch", "worst_class", 0.0, 0, 2, 0.0, 0.8, "bee"),
    ]
    differences = [
        Difference("zero-shot", "tuned", "id", 0, 3, 16, 0.1875, -0.02, 0.4, 0.25),
        Difference("zero-shot", "tuned", "sketch", 9, 1, 16, -0.5, -0.7, -0.1, 0.0215),
    ]
    return ShiftReport(
        rows,
        {"sets": sets},
        "id",
        {"tuned": {"sketch": {"classes": ten, "bins": bins}}},
        differences,
        [Fit("sketch", "id", "logit", 1.071, -2.37, 0.869, 0.565, 0.847, "somewhere")],
        [Curve([0, 0.5, 0.75, 1], ["zero-shot", "a", "b", "tuned"], "tuned", "id")],
        {"seconds": 1.5},
    )


def printed(report: ShiftReport, metric: str = "accuracy", width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(report.table(metric))
    return stream.getvalue()


def cells(report: ShiftReport, metric: str = "accuracy", width: int = 120) -> list[list[str]]:
    """What stands in the printed table, line by line; empty cells are left out."""
    _, *lines = printed(report, metric, width).splitlines()
    rule = next(place for place, line in enumerate(lines) if "─" in line)
    ends = [place for place, line in enumerate(lines) if line[:1] in "*†BL" and place > rule]
    body = lines[:rule] + lines[rule + 1 : min(ends, default=len(lines))]
    return [re.split(r"  +", line.strip()) for line in body]
