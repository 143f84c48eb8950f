"""Joining: reports of the same protocol as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cfmask.errors import InputError
from cfmask.reporting.report import ShiftReport


def joined(first: ShiftReport, second: ShiftReport, source: str) -> ShiftReport:
    """A report with the models of a second one, whose protocol must be the same.

    No model of one is paired with one of the other: answers to single images are not in reports.

    Args:
        first: the report whose protocol, fits and run facts stay.
        second: the other one.
        source: where that comes from, for messages and for names that both have.

    Raises:
        InputError: another metric, precision, set, rule or number of images.
    """
    check_protocol(first.protocol, second, source)
    names = {m: f"{source}: {m}" if m in first.models else m for m in second.models}
    both = [first, _renamed(second, names)]
    models = {name: facts for r in both for name, facts in r.protocol.get("models", {}).items()}
    return replace(
        first,
        rows=[row for report in both for row in report.rows],
        protocol={**first.protocol, "models": models},
        details={name: sets for report in both for name, sets in report.details.items()},
        differences=[pair for report in both for pair in report.differences],
        curves=[curve for report in both for curve in report.curves],
        spreads=[spread for report in both for spread in report.spreads],
        fronts=[front for report in both for front in report.fronts],
        gaps=[gap for report in both for gap in report.gaps],
        training={name: curves for report in both for name, curves in report.training.items()},
    )


def _renamed(report: ShiftReport, names: Mapping[str, str]) -> ShiftReport:
    """A report with other names of its models."""

    def new(name: str) -> str:
        return names.get(name, name)

    models = {new(m): facts for m, facts in report.protocol.get("models", {}).items()}
    return replace(
        report,
        spreads=[replace(s, models=list(map(new, s.models))) for s in report.spreads],
        fronts=[replace(f, curves=[list(map(new, c)) for c in f.curves]) for f in report.fronts],
        rows=[replace(row, model=new(row.model)) for row in report.rows],
        protocol={**report.protocol, "models": models},
        details={new(m): sets for m, sets in report.details.items()},
        differences=[
            replace(d, first=new(d.first), second=new(d.second)) for d in report.differences
        ],
        curves=[
            replace(c, models=[new(m) for m in c.models], chosen=c.chosen and new(c.chosen))
            for c in report.curves
        ],
    )


def check_protocol(ours: Mapping[str, Any], other: ShiftReport, source: str) -> None:
    """Refuse a report of another protocol.

    Args:
        ours: the protocol.
        other: the report.
        source: where it comes from, for messages.

    Raises:
        InputError: another metric, precision, decoder, task, set, or rule of one.
    """
    wrong = _first_difference(ours, other.protocol)
    if wrong:
        raise InputError(
            f"Expected a report of the same protocol, but {source} {wrong}; evaluate both alike."
        )


def _first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The first difference between two protocols, in words; empty if there is none."""
    for key in ("metric", "precision", "decoder", "tasks"):
        if ours.get(key) != theirs.get(key):
            return f"has {theirs.get(key)!r} for {key}, not {ours.get(key)!r}"
    own, other = (protocol.get("sets", {}) for protocol in (ours, theirs))
    if set(own) != set(other):
        return f"has the sets {', '.join(other)}, not {', '.join(own)}"
    for name in own:
        for key in {**own[name], **other[name]}:
            if own[name].get(key) != other[name].get(key):
                values = other[name].get(key), own[name].get(key)
                return f"has {values[0]!r} for {key} of {name}, not {values[1]!r}"
    return ""
