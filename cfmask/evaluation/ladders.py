"""Ladders: answers to one object at rising scales of a nuisance.

A trajectory is one object over the scales; its failure point is the smallest scale with a wrong
answer. Letters: N images of all steps of a ladder, S scales, T trajectories.

Source: CNS-Bench (ICCV 2025), whose released code takes the first wrong line of a stored table;
here scales are sorted first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers
from cfmask.evaluation.estimates import Z
from cfmask.evaluation.figures import Row
from cfmask.evaluation.metrics import Counts, Value
from cfmask.shift import Shift

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Climb:
    """The images of all steps of a ladder, with scale 0 of a clean set if there is one.

    Attributes:
        sets: names of the sets whose answers follow each other.
        scales: float (N,).
        owners: int (N,), number of the trajectory of each image.
        followed: bool (N,), False for clean images that belong to no trajectory of the steps.
        beyond: failure point of a trajectory that is never wrong.
    """

    sets: list[str]
    scales: Floats
    owners: npt.NDArray[np.int64]
    followed: npt.NDArray[np.bool_]
    beyond: float


def check_ladders(shifts: Sequence[Shift]) -> None:
    """Refuse ladders on which a trajectory stands at one scale twice.

    Raises:
        InputError: there is one; or its sets do not agree on what never wrong is.
    """
    for name, steps in _ladders(shifts).items():
        known: set[tuple[str | None, float]] = set()
        for shift in steps:
            ladder = shift.ladder
            assert ladder is not None
            if ladder.beyond != _ladder(steps[0]).beyond:
                raise InputError(
                    f"Expected one failure point for never wrong on {name}, but got "
                    f"{_ladder(steps[0]).beyond:g} and {ladder.beyond:g}."
                )
            for pair in _places(shift):
                if pair in known:
                    raise InputError(
                        f"Expected each scale once on a trajectory of {name}, but "
                        f"{pair[0] or 'every one'} has {pair[1]:g} twice; remove one."
                    )
                known.add(pair)


def _ladder(shift: Shift) -> Any:
    assert shift.ladder is not None
    return shift.ladder


def _places(shift: Shift) -> Iterator[tuple[str | None, float]]:
    """Trajectory and scale of each image; one of all where the place tells the trajectory."""
    ladder = _ladder(shift)
    scales = ladder.scales if isinstance(ladder.scales, tuple) else None
    if ladder.trajectories is None:
        # Of one set every image is a trajectory of its own.
        yield from [(None, scale) for scale in ladder.steps]
    else:
        several = scales or (ladder.scales,) * len(ladder.trajectories)
        yield from zip(ladder.trajectories, several, strict=True)


def _ladders(shifts: Sequence[Shift]) -> dict[str, list[Shift]]:
    """The sets of each ladder by its name."""
    found: dict[str, list[Shift]] = {}
    for shift in shifts:
        if shift.ladder is not None and not shift.unknown:
            found.setdefault(shift.ladder.name or shift.name, []).append(shift)
    return found


def _climb(steps: Sequence[Shift], own: Mapping[str, Answers]) -> Climb:
    """The images of the steps of a ladder; `own` are answers of any model to every set."""
    sets, scales, names = [], [], []
    for shift in steps:
        ladder, count = _ladder(shift), len(own[shift.name])
        sets.append(shift.name)
        scales.append(np.broadcast_to(np.array(ladder.scales, dtype=float), (count,)))
        names.append(np.array(ladder.trajectories or range(count)).astype(str))
    clean, followed = _ladder(steps[0]).clean, np.ones(sum(map(len, names)), dtype=bool)
    if clean in own and min(map(np.min, scales)) > 0:
        count = len(own[clean])
        paired = all(_ladder(s).trajectories is None and len(own[s.name]) == count for s in steps)
        sets.append(clean)
        scales.append(np.zeros(count))
        names.append(np.array([str(k) if paired else f"clean {k}" for k in range(count)]))
        followed = np.append(followed, np.full(count, paired))
    _, owners = np.unique(np.concatenate(names), return_inverse=True)
    return Climb(sets, np.concatenate(scales), owners, followed, _ladder(steps[0]).beyond)


def ladder_figures(
    table: Mapping[str, Mapping[str, Answers]], shifts: Sequence[Shift]
) -> Iterator[tuple[str, str, list[Row], Counts]]:
    """For each model and ladder of at least two scales its rows, and what `details` hold of it."""
    for name, steps in _ladders(shifts).items():
        climb = _climb(steps, next(iter(table.values())))
        if len(np.unique(climb.scales)) < 2:
            continue
        for model, own in table.items():
            correct = np.concatenate([own[one].correct.numpy() for one in climb.sets])
            points = failure_points(climb, correct)
            rows = [
                Row(model, name, metric, v.value, v.correct, v.total, v.low, v.high, v.note)
                for metric, v in _values(climb, correct, points).items()
            ]
            yield model, name, rows, _counts(climb, correct, points)


def failure_points(climb: Climb, correct: npt.NDArray[np.bool_]) -> Floats:
    """Smallest scale of each trajectory at which the answer is wrong, float (T,)."""
    points = np.full(int(climb.owners.max()) + 1, climb.beyond)
    wrong = ~correct & climb.followed
    np.minimum.at(points, climb.owners[wrong], climb.scales[wrong])
    return points[np.unique(climb.owners[climb.followed])]


def _values(climb: Climb, correct: npt.NDArray[np.bool_], points: Floats) -> dict[str, Value]:
    count, mean = len(points), float(points.mean())
    sd = float(points.std(ddof=1)) if count > 1 else math.nan
    never = int((points == climb.beyond).sum())
    reach = Z * sd / math.sqrt(count)
    note = f"{count} trajectories; never wrong counts as {climb.beyond:g}"
    found: dict[str, Value] = {}
    scales = np.unique(climb.scales)
    if scales[0] == 0:
        found["scale_drop"] = _drop(climb, correct, scales[1:])
        found["last_drop"] = _drop(climb, correct, scales[-1:], f"at scale {scales[-1]:g}")
    middle = Value.between(mean, mean - reach, mean + reach)
    found["failure_point"] = Value(mean, middle.low, middle.high, note=note)
    found |= {"failure_sd": Value(sd)} if count > 1 else {}
    found["failure_max"] = Value(float(points.max()))
    found["never_wrong"] = Value.share(never, count)
    return found


def _drop(climb: Climb, correct: npt.NDArray[np.bool_], scales: Floats, note: str = "") -> Value:
    """Accuracy at scale 0 minus the mean of those at other scales.

    The interval is normal; images of one trajectory are taken together (a cluster-robust variance).
    """
    weights, residuals, value = np.zeros(len(correct)), np.zeros(len(correct)), 0.0
    for scale in (0.0, *scales):
        here = climb.scales == scale
        share, sign = correct[here].mean(), 1.0 if scale == 0 else -1 / len(scales)
        weights[here], residuals[here] = sign / here.sum(), correct[here] - share
        value += sign * share
    parts = np.bincount(climb.owners, weights * residuals)
    count = len(np.unique(climb.owners))
    if count < 2:
        return Value(float(value), note=note)
    reach = Z * math.sqrt(float((parts**2).sum()) * count / (count - 1))
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return Value(float(value), float(low), float(high), note=note)


def _counts(climb: Climb, correct: npt.NDArray[np.bool_], points: Floats) -> Counts:
    scales, places = np.unique(climb.scales, return_inverse=True)
    rungs = [*np.unique(climb.scales[climb.followed]).tolist(), climb.beyond]
    return {
        "scales": {
            "scale": scales.tolist(),
            "correct": np.bincount(places[correct], minlength=len(scales)).tolist(),
            "total": np.bincount(places).tolist(),
        },
        "failures": {"scale": rungs, "count": [int((points == r).sum()) for r in rungs]},
    }
