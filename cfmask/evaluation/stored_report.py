"""Stored report: JSON content -> parts of a report. A file from elsewhere is data, and checked."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from cfmask.evaluation.figures import Curve, Difference, Fit, Row, Spread

# Levels of what a report may hold beside what is named here.
DEPTH = 20
# Accuracies, drops and mCE are far below; a chart could not be drawn of more.
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
    """What is read of a protocol; the rest is shown as it is."""

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


class Details(TypedDict, total=False):
    """Counts behind the figures of a model on a set."""

    classes: Shares
    groups: Shares
    bins: Bins


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
}
# Of these, only what is named is read.
OPEN = (SetRule, Protocol)
# What reports of all versions have.
NEEDED = ("rows", "protocol", "reference")


def report_parts(content: Any) -> dict[str, Any]:
    """The parts of a report by name; older reports lack some.

    Args:
        content: of a JSON file.

    Raises:
        ValueError: it is no report's, in words that go on after "but".
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_kind(content)}")
    for name in NEEDED:
        if name not in content:
            raise ValueError(f"it has no {name}")
    for name in content:
        if name not in PARTS:
            raise ValueError(f"it has a part {name!r:.50}")
    parts = {name: _fitting(value, PARTS[name], name) for name, value in content.items()}
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


def _fitting(value: Any, kind: Any, where: str) -> Any:
    """A value of JSON as a value of a type, dataclasses made of their fields."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        _check_depth(value, DEPTH, where)
    elif origin in (Union, UnionType):
        kinds = [one for one in inner if _is_of(value, one)]
        if not kinds:
            raise ValueError(f"{where} is {_kind(value)}")
        return _fitting(value, kinds[0], where)
    elif not _is_of(value, kind):
        raise ValueError(f"{where} is {_kind(value)}")
    elif origin is list:
        return [_fitting(one, inner[0], f"{where}[{k}]") for k, one in enumerate(value)]
    elif origin is dict:
        return {k: _fitting(v, inner[1], f"{where}[{k!r:.50}]") for k, v in value.items()}
    elif is_dataclass(kind) or is_typeddict(kind):
        return _record(value, kind, where)
    return value


def _record(value: dict[str, Any], kind: Any, where: str) -> Any:
    """A dataclass or a typed dictionary of a dictionary."""
    known = get_type_hints(kind)
    if is_typeddict(kind):
        needed, made = kind.__required_keys__, dict
    else:
        needed = {field.name for field in fields(kind) if field.default is MISSING}
        made = kind
    lacking = [name for name in known if name in needed and name not in value]
    more = [] if kind in OPEN else [name for name in value if name not in known]
    if lacking or more:
        raise ValueError(f"{where} {'lacks' if lacking else 'adds'} {(lacking or more)[0]!r:.50}")
    return made(**{k: _fitting(v, known.get(k, Any), f"{where}.{k}") for k, v in value.items()})


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of JSON may be of a type; what it holds is not looked at."""
    if get_origin(kind) is Literal:
        return any(
            value is one or (value == one and type(value) is type(one)) for one in get_args(kind)
        )
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < 1e300 and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind in (str, bool, NoneType):
        return isinstance(value, kind)
    return isinstance(value, list if get_origin(kind) is list else dict)


def _check_depth(value: Any, left: int, where: str) -> None:
    if left == 0:
        raise ValueError(f"{where} is nested deeper than {DEPTH} levels")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _check_depth(one, left - 1, where)


def _kind(value: Any) -> str:
    """A value of JSON in words."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return f"{value!r:.50}"
