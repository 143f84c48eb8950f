"""Figures: the records of a report, without their presentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Transform = Literal["logit", "probit"]

# Figures of several sets that every report has if it has the sets.
MEAN, HARMONIC = "mean of shifts", "harmonic mean"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        model: name of the model's row.
        shift: name of the set, or of a combination of sets.
        metric: its name; see `cfmask.evaluation.metrics`.
        value: as a fraction: shares in [0, 1], differences in [-1, 1]; `nll` in nats.
        correct: number of images classified right; None where the figure is no share of images.
        total: number of images; None likewise.
        low: lower end of the 95 % interval; None for metrics without one.
        high: upper end of it.
        note: such as the name of the worst class, or that a fit is extrapolated.
    """

    model: str
    shift: str
    metric: str
    value: float
    correct: int | None = None
    total: int | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """Two models on the same images of a set.

    Attributes:
        first: name of the first model: the first row of the report, or the row that the other
            was tuned from.
        second: name of the other.
        shift: name of the set.
        only_first: number of images that only the first gets right.
        only_second: number of images that only the second gets right.
        total: number of images.
        difference: accuracy of the second minus that of the first, in [-1, 1].
        low: lower end of its 95 % interval.
        high: upper end of it.
        p_value: of the exact McNemar test, two-sided.
    """

    first: str
    second: str
    shift: str
    only_first: int
    only_second: int
    total: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Fit:
    """A line through accuracies of models: the shift accuracy to expect at a reference accuracy.

    transform(shift) = slope · transform(reference) + intercept, accuracies as fractions.

    Attributes:
        shift: name of the shift set.
        reference: name of the set that predicts it.
        transform: of both accuracies.
        slope: of the line.
        intercept: of the line.
        r2: share of the variance that the line explains; None if not known.
        low: least reference accuracy of the models of the fit; None if not known.
        high: greatest one.
        source: where the line comes from.
        note: for the reader of a report.
    """

    shift: str
    reference: str
    transform: Transform
    slope: float
    intercept: float
    r2: float | None = None
    low: float | None = None
    high: float | None = None
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Models between two: WiSE-FT.

    Attributes:
        alphas: weight of the tuned model at each point, ascending, in [0, 1].
        models: name of the row of each point.
        chosen: name of the row with the best accuracy on `chosen_on`, of equal ones the one with
            the least alpha; None without a reference set.
        chosen_on: name of the report's reference set, which alone decides.
    """

    alphas: list[float]
    models: list[str]
    chosen: str | None = None
    chosen_on: str | None = None


@dataclass(frozen=True)
class Spread:
    """A figure of runs that differ by their seed alone.

    Attributes:
        model: name of their common row.
        models: names of their own rows.
        shift: name of the set or combination.
        metric: its name.
        mean: of their values.
        sd: standard deviation of their values, with n - 1.
        gain: mean difference from the model that each was tuned from; None if that is not known.
        gain_sd: standard deviation of these differences; None likewise.
    """

    model: str
    models: list[str]
    shift: str
    metric: str
    mean: float
    sd: float
    gain: float | None = None
    gain_sd: float | None = None


@dataclass(frozen=True)
class Front:
    """Accuracy under shift at equal in-distribution accuracy; see `cfmask.evaluation.fronts`.

    Attributes:
        model: name of the method and setting.
        seeds: what tells its runs apart; one entry a run.
        curves: rows of each run's curve.
        levels: in-distribution accuracies.
        values: mean over the runs of the accuracy under shift there; None where one does not reach.
        sds: standard deviation over the runs, with n - 1; None likewise, and of one run.
    """

    model: str
    seeds: list[str]
    curves: list[list[str]]
    levels: list[float]
    values: list[float | None]
    sds: list[float | None]


@dataclass(frozen=True)
class Gap:
    """What lies between two fronts: their area by its width.

    Attributes:
        first: name of a front.
        second: name of the other.
        begins: least in-distribution accuracy that all their runs reach.
        ends: greatest one.
        value: mean height under shift of the second above the first in between, in [-1, 1]; the
            mean over pairs of runs of one seed.
        low: lower end of its 95 % interval; None where there is none.
        high: upper end of it.
        p_value: two-sided, that the gap is 0; None likewise.
        how: what the interval is of: `3 seeds, t` or `one seed, bootstrap`.
        adjusted: the p-value after Holm's correction over all gaps of the report.
    """

    first: str
    second: str
    begins: float
    ends: float
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    how: str = ""
    adjusted: float | None = None
