"""Stored report: JSON content -> parts of a report, their types checked."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from cfmask.evaluation.figures import Curve, Difference, Fit, Front, Gap, Row, Spread
from cfmask.typed_json import Typed, in_words

# Largest size of an accuracy: drops and mCE are far below, and charts fail above.
MOST = 100.0


class Counted(TypedDict):
    """Number of images and classes."""

    images: int
    classes: int


class SizeRule(TypedDict):
    """How much of a set was found."""

    found: Counted
    expected: Counted
    complete: bool


class SetRule(TypedDict, total=False):
    """What the protocol says of a set."""

    in_distribution: bool
    size: SizeRule
    unreadable: list[str]
    images: int
    part_of: str


class OwnMetric(TypedDict):
    """How a metric of a user's own is shown; see `Metric`."""

    title: str
    meaning: str
    unit: str
    scale: float
    digits: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    better: Literal[-1, 0, 1]
    signed: bool


class Protocol(TypedDict, total=False):
    """The parts of a protocol that are read; others are shown as they are."""

    sets: dict[str, SetRule]
    means: dict[str, list[str]]
    metrics: dict[str, str | OwnMetric]
    models: dict[str, dict[str, Any]]
    interval: str


class Shares(TypedDict):
    """Right answers and images of classes or groups."""

    names: list[str]
    correct: list[int]
    total: list[int]


class Bins(TypedDict):
    """Images, sum of confidence and right answers of bins."""

    count: list[int]
    confidence: list[float]
    correct: list[int]


class Oscr(TypedDict):
    """Shares of unknown images, and of known ones answered right, above falling scores."""

    fpr: list[float]
    ccr: list[float]


class Scales(TypedDict):
    """Right answers and images at rising scales."""

    scale: list[float]
    correct: list[int]
    total: list[int]


class Failures(TypedDict):
    """Trajectories by failure point; the last scale stands for those that are never wrong."""

    scale: list[float]
    count: list[int]


class Details(TypedDict, total=False):
    """Counts behind the figures of a model on a set."""

    classes: Shares
    groups: Shares
    bins: Bins
    oscr: Oscr
    scales: Scales
    failures: Failures


PARTS: dict[str, Any] = {
    "rows": list[Row],
    "protocol": Protocol,
    "reference": str | None,
    "details": dict[str, dict[str, Details]],
    "differences": list[Difference],
    "fits": list[Fit],
    "curves": list[Curve],
    "run": dict[str, Any],
    "training": dict[str, dict[str, list[list[float]]]],
    "spreads": list[Spread],
    "fronts": list[Front],
    "gaps": list[Gap],
}
# These may have other keys too.
OPEN = (SetRule, Protocol)
# Parts that reports of all versions have.
NEEDED = ("rows", "protocol", "reference")


def report_parts(content: Any) -> dict[str, Any]:
    """The parts of a report by name, of the content of a JSON file; older reports lack some.

    Raises:
        ValueError: it is no report; the text continues a sentence after "but".
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {in_words(content)}")
    for name in NEEDED:
        if name not in content:
            raise ValueError(f"it has no {name}")
    for name in content:
        if name not in PARTS:
            raise ValueError(f"it has a part {name!r:.50}")
    typed = Typed(loose=OPEN)
    parts = {name: typed(value, PARTS[name], name) for name, value in content.items()}
    for k, row in enumerate(parts["rows"]):
        ends = [end for end in (row.value, row.low, row.high) if end is not None]
        if row.metric == "accuracy" and max(map(abs, ends)) > MOST:
            raise ValueError(f"rows[{k}] is no accuracy: {max(ends):g}")
    for k, curve in enumerate(parts.get("curves", [])):
        if len(curve.alphas) != len(curve.models):
            raise ValueError(f"curves[{k}] has not as many models as alphas")
    for run, metrics in parts.get("training", {}).items():
        for name, points in metrics.items():
            if any(len(point) != 2 for point in points):
                raise ValueError(f"training of {run!r:.50}, {name!r:.50}: no pairs")
    for model, sets in parts.get("details", {}).items():
        for shift, counts in sets.items():
            for kind, columns in counts.items():
                _check_counts(columns, f"details of {model!r:.50} on {shift!r:.50}, {kind}")
    return parts


def _check_counts(columns: dict[str, list[Any]], where: str) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{where}: columns of different lengths")
    if any(total < 1 for total in columns.get("total", [])):
        raise ValueError(f"{where}: a total below 1")
