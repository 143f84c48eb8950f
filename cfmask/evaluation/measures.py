"""Measures: answers -> rows of a report, the counts behind them, and comparisons of models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers
from cfmask.evaluation.estimates import (
    calibration_bins,
    combined,
    harmonic,
    mcnemar,
    paired_difference,
)
from cfmask.evaluation.figures import HARMONIC, MEAN, Difference, Row
from cfmask.evaluation.metrics import METRICS, Counts, Judged, Metric, Value
from cfmask.evaluation.novelty import oscr_curve
from cfmask.shift import Shift
from cfmask.shifts.combinations import COMBINATIONS, Combination, mean_of

# Answers of every model to every set.
Table = Mapping[str, Mapping[str, Answers]]


def counts_of(
    shift: Shift, answers: Answers, names: Sequence[str], reference: Answers | None = None
) -> Counts:
    """What a report's `details` hold of one model on one set; `names` are of the head's classes.

    Of unknown classes that is the curve of OSCR by the maximum logit against the `reference`.

    Labels with several right classes count as classes, named after the first, if no class is right
    for two of them; otherwise (ReaL) the set has no counts by class.
    """
    counts: Counts = {}
    if shift.unknown:
        if reference and reference.max_logit is not None and answers.max_logit is not None:
            known = reference.max_logit, answers.max_logit, reference.correct
            counts["oscr"] = oscr_curve(*known)
        return counts
    if answers.confidence is not None:
        counts["bins"] = calibration_bins(answers.confidence, answers.correct)
    accepts = shift.accepts or {}
    several = [k for right in accepts.values() for k in right]
    if len(several) == len(set(several)):
        present = answers.labels.unique().tolist()
        titles = {k: names[accepts[k][0] if k in accepts else k] for k in present}
        counts["classes"] = _shares(answers.labels, answers.correct, titles)
    if shift.groups is not None:
        groups = torch.tensor(shift.groups)
        titles = {g: shift.group_names[g] for g in groups.unique().tolist()}
        counts["groups"] = _shares(groups, answers.correct, titles)
    return counts


def _shares(numbers: Tensor, correct: Tensor, titles: Mapping[int, str]) -> dict[str, list[Any]]:
    """Right answers and images of every number that has a title."""
    keys = torch.tensor(list(titles))
    total = torch.bincount(numbers)
    right = torch.bincount(numbers, correct.double(), len(total))
    return {
        "names": list(titles.values()),
        "correct": right[keys].long().tolist(),
        "total": total[keys].tolist(),
    }


def rows_of(model: str, judged: Judged, metrics: Mapping[str, Metric] = METRICS) -> list[Row]:
    """All figures of one model on one set; metrics computed from others are left out.

    Unknown classes have those alone that need no right class.

    Raises:
        InputError: a figure that is not finite.
    """
    rows = []
    for name, metric in metrics.items():
        asked = not metric.needs_logits or judged.answers.logits is not None
        asked &= metric.unlabelled or not judged.shift.unknown
        found = metric.of(judged) if metric.of and asked else None
        if found is not None:
            own = found if isinstance(found, Value) else Value(float(found))
            if not math.isfinite(own.value):
                raise InputError(
                    f"Expected the metric {name} to be a number, but got {own.value} on "
                    f"{judged.shift.name}; give None where a set has none."
                )
            facts = (own.correct, own.total, own.low, own.high, own.note)
            rows.append(Row(model, judged.shift.name, name, own.value, *facts))
    return rows


def combination_rows(rows: Sequence[Row], shifts: Sequence[Shift]) -> Iterator[Row]:
    """Accuracies on the `COMBINATIONS` whose sets are all there, and on all shift sets.

    The harmonic mean is of the reference set and the mean of shifts, if there are both.
    """
    accuracies = [row for row in rows if row.metric == "accuracy"]
    reference = next((shift.name for shift in shifts if shift.in_distribution), None)
    for model in dict.fromkeys(row.model for row in accuracies):
        own = {row.shift: row for row in accuracies if row.model == model}
        for name, of in combinations(shifts).items():
            parts = [own[s] for s in of.weights]
            counts = [(row.correct or 0, row.total or 1) for row in parts]
            value, low, high = combined(counts, list(of.weights.values()), of.constant)
            own[name] = Row(model, name, "accuracy", value, None, None, low, high)
            yield own[name]
        if reference and MEAN in own:
            value, low, high = harmonic(_with_ends(own[reference]), _with_ends(own[MEAN]))
            yield Row(model, HARMONIC, "accuracy", value, None, None, low, high)


def _with_ends(row: Row) -> tuple[float, float, float]:
    assert row.low is not None and row.high is not None, "an accuracy has an interval"
    return row.value, row.low, row.high


def combinations(shifts: Sequence[Shift]) -> dict[str, Combination]:
    """The `COMBINATIONS` whose sets are all there, and the mean of two or more shift sets.

    Parts of a collection (one corruption at one severity) are not in the mean of shifts: they would
    outweigh all other sets.
    """
    names = {shift.name for shift in shifts}
    found = {name: of for name, of in COMBINATIONS.items() if set(of.weights) <= names}
    whole = [shift.name for shift in shifts if shift.averaged]
    return found | ({MEAN: mean_of(*whole)} if len(whole) > 1 else {})


def differences(
    table: Table, shifts: Sequence[Shift], starts: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Difference]:
    """Every model against the first, and against the one that it was tuned from, on every set.

    `starts` gives the latter, for models where it is known.
    """
    top, *others = table
    pairs = [(first, k) for k in others for first in dict.fromkeys((top, starts.get(k, top)))]
    for first, second in pairs:
        for shift in (shift for shift in shifts if not shift.unknown):
            a, b = (table[model][shift.name].correct for model in (first, second))
            lost, won = int((a & ~b).sum()), int((b & ~a).sum())
            ends = paired_difference(lost, won, len(a))
            yield Difference(
                first, second, shift.name, lost, won, len(a), *ends, mcnemar(lost, won)
            )
