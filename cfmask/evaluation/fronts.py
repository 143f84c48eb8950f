"""Fronts: models compared at equal in-distribution accuracy, along curves of weights.

A method is a curve: models between the starting point and the tuned one (WiSE-FT). Its front gives,
for an in-distribution accuracy, the accuracy under shift: linear between neighbours on the curve,
as the weights in between are models too, and the greater one where a curve that turns back has
two, as a user takes the better. No convex hull is taken and nothing is drawn beyond the ends: there
are no such models. All accuracies are fractions.

Letters: P points of a curve, S straight pieces, B draws, N images, M models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cfmask.evaluation.figures import Front, Gap
from cfmask.evaluation.results import Results

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

# Levels of a table at most; draws of images.
LEVELS, DRAWS = 10, 1000
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


class Envelope:
    """The front of one curve.

    Args:
        points: float (P, 2), in-distribution accuracy and accuracy under shift of neighbours on the
            curve, at least two.
    """

    def __init__(self, points: npt.ArrayLike) -> None:
        found = np.asarray(points, dtype=float)
        pairs = np.stack([found[:-1], found[1:]], 1)
        # Pieces begin at the lower accuracy.
        back = pairs[:, 0, 0] > pairs[:, 1, 0]
        pairs[back] = pairs[back, ::-1]
        self.start, self.end = pairs[:, 0], pairs[:, 1]
        self.low, self.high = float(found[:, 0].min()), float(found[:, 0].max())

    def at(self, accuracies: npt.ArrayLike) -> Floats:
        """Height at in-distribution accuracies (X,); NaN where the curve does not reach."""
        x = np.asarray(accuracies, dtype=float)[:, None]
        (x0, y0), (x1, y1) = self.start.T, self.end.T
        width = x1 - x0
        share = np.divide(x - x0, width, out=np.zeros((len(x), len(x0))), where=width > 0)
        heights = np.where(width > 0, y0 + share * (y1 - y0), np.maximum(y0, y1))
        within = (x0 <= x) & (x <= x1)
        best = np.where(within, heights, -np.inf).max(1)
        return np.where(within.any(1), best, np.nan)

    @cached_property
    def knots(self) -> Floats:
        """Where pieces begin, end or cross: between two neighbours the front is one line."""
        (x0, y0), (x1, y1) = self.start.T, self.end.T
        width = x1 - x0
        slopes = np.divide(y1 - y0, width, out=np.zeros_like(width), where=width > 0)
        first, second = np.triu_indices(len(x0), 1)
        turn = slopes[first] - slopes[second]
        rise = (y0 - slopes * x0)[second] - (y0 - slopes * x0)[first]
        crossings = rise[turn != 0] / turn[turn != 0]
        return np.unique(np.concatenate([x0, x1, crossings]))


def mean_gap(first: Envelope, second: Envelope, low: float, high: float) -> float:
    """Area between two fronts by its width: mean height of the second above the first.

    Args:
        first: a front.
        second: another one.
        low: in-distribution accuracy from which both reach to `high`.
        high: above `low`.
    """
    inner = np.concatenate([first.knots, second.knots])
    edges = np.unique([low, *inner[(low < inner) & (inner < high)], high])
    middles = (edges[1:] + edges[:-1]) / 2
    # Both are straight between two edges, where the value in the middle is the mean.
    heights = second.at(middles) - first.at(middles)
    return float(heights @ np.diff(edges) / (high - low))


def common_range(fronts: Sequence[Envelope]) -> tuple[float, float] | None:
    """In-distribution accuracies that all fronts reach; None if they share no stretch."""
    low, high = max(front.low for front in fronts), min(front.high for front in fronts)
    return (low, high) if low < high else None


def paired_t(values: Sequence[float]) -> tuple[float, float, float]:
    """95 % t interval of a mean of at least two values and its two-sided p-value against 0."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / count**0.5
    reach = float(t.ppf(0.975, count - 1)) * error
    p_value = float(2 * t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return mean - reach, mean + reach, p_value


def percentile(values: Floats) -> tuple[float, float, float]:
    """95 % percentile interval of draws (B,), and a two-sided p-value against 0."""
    low, high = np.quantile(values, [0.025, 0.975])
    beyond = min((values <= 0).sum(), (values >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + float(beyond)) / (len(values) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a table, adjusted so that any false finding in it has probability <= level.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6).
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


def drawn_accuracies(correct: Bits, rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Accuracies (B, M) of models on images drawn with replacement, the same for all models.

    Args:
        correct: bool (N, M), whether a model is right on an image.
        rng: of the draws.
        draws: B.
    """
    # Images on which all models answer alike are one kind; there are far fewer kinds than images.
    kinds, counts = np.unique(correct, axis=0, return_counts=True)
    drawn = rng.multinomial(len(correct), counts / len(correct), size=draws)
    return np.asarray(drawn @ kinds / len(correct), dtype=float)


@dataclass(frozen=True)
class Line:
    """The curve of one run.

    Attributes:
        front: name of the method and setting, which runs of several seeds share.
        seed: what tells it from these; runs of two fronts with the same seed are a pair.
        models: rows of the curve.
    """

    front: str
    seed: str
    models: Sequence[str]


def fronts_of(
    report: Results, lines: Sequence[Line], correct: Mapping[str, Mapping[str, Bits]]
) -> tuple[list[Front], list[Gap]]:
    """The fronts of a report and what lies between each two of them.

    Differences are paired by seed, with a t interval over the seeds; where each of two fronts has
    one seed alone, the interval is that of a bootstrap over the images of every set.

    Args:
        report: the figures; without a reference, or anything under shift, there are no fronts.
        lines: the curves; fronts of several seeds are their mean.
        correct: model -> set -> bool (N,), right answers; models without them are not drawn anew.

    Returns:
        The fronts, and the gap of each two that share a range and a seed; none of a single front.
    """
    own: dict[str, dict[str, Line]] = {}
    for line in lines:
        own.setdefault(line.front, {})[line.seed] = line
    if report.under_shift is None or report.reference is None or len(own) < 2:
        return [], []
    curves = {
        name: {seed: Envelope(_points(report, line.models)) for seed, line in found.items()}
        for name, found in own.items()
    }
    levels = _levels([envelope for found in curves.values() for envelope in found.values()])
    fronts = [
        Front(
            name,
            [*found],
            [list(line.models) for line in found.values()],
            levels,
            *mean_front([*curves[name].values()], levels),
        )
        for name, found in own.items()
    ]
    alone = {n: next(iter(own[n].values())).models for n in own if len(own[n]) == 1}
    drawn = _drawn(report, alone, correct)
    gaps = [_gap(a, b, curves, drawn) for a, b in combinations(own, 2)]
    return fronts, _adjusted([gap for gap in gaps if gap is not None])


def gaps_against(gaps: Sequence[Gap], names: Sequence[str]) -> list[Gap]:
    """The gaps of all fronts against some, with Holm's correction over these alone.

    Args:
        gaps: of each two fronts, as `fronts_of` gives them.
        names: fronts that the others are compared with; two of them with each other too.

    Returns:
        The gaps of which one is among them, as the first.
    """
    kept = [gap for gap in gaps if gap.first in names or gap.second in names]
    return _adjusted([gap if gap.first in names else _turned(gap) for gap in kept])


def _turned(gap: Gap) -> Gap:
    """The same gap, of the other front."""
    low, high = (None if end is None else -end for end in (gap.high, gap.low))
    first, second = gap.second, gap.first
    return replace(gap, first=first, second=second, value=-gap.value, low=low, high=high)


def envelopes_of(report: Results, front: Front) -> list[Envelope]:
    """The front of each seed."""
    return [Envelope(_points(report, models)) for models in front.curves]


def mean_front(
    fronts: Sequence[Envelope], accuracies: Sequence[float]
) -> tuple[list[float | None], list[float | None]]:
    """Mean and standard deviation (n - 1) of the fronts of seeds at in-distribution accuracies.

    Returns:
        None where not all of them reach; no deviation of one seed.
    """
    heights = np.stack([front.at(accuracies) for front in fronts])
    sds = heights.std(0, ddof=1) if len(fronts) > 1 else np.full(heights.shape[1], np.nan)
    means, spreads = (
        [None if np.isnan(value) else float(value) for value in found]
        for found in (heights.mean(0), sds)
    )
    return means, spreads


def _points(report: Results, models: Sequence[str]) -> list[tuple[float, float]]:
    shift, reference = str(report.under_shift), str(report.reference)
    return [(report.value(m, reference), report.value(m, shift)) for m in models]


def _levels(fronts: Sequence[Envelope]) -> list[float]:
    """Round in-distribution accuracies that all fronts reach."""
    shared = common_range(fronts)
    if shared is None:
        return []
    low, high = shared
    step = next((s for s in STEPS if (high - low) / s <= LEVELS + 1e-9), STEPS[-1])
    places = range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
    return [round(k * step, 6) for k in places]


def _gap(
    first: str,
    second: str,
    curves: Mapping[str, Mapping[str, Envelope]],
    drawn: Mapping[str, Sequence[Envelope]],
) -> Gap | None:
    """The second front above the first; None where they share no range or no seed."""
    one, other = curves[first], curves[second]
    if len(one) == len(other) == 1:
        pairs = [(*one.values(), *other.values())]
    else:
        pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    shared = common_range([front for pair in pairs for front in pair]) if pairs else None
    if shared is None:
        return None
    values = [mean_gap(a, b, *shared) for a, b in pairs]
    value = float(np.mean(values))
    if len(values) > 1:
        return Gap(first, second, *shared, value, *paired_t(values), f"{len(values)} seeds, t")
    if first in drawn and second in drawn:
        both = ((a, b, common_range([a, b])) for a, b in zip(drawn[first], drawn[second]))
        found = np.array([mean_gap(a, b, *own) for a, b, own in both if own])
        return Gap(first, second, *shared, value, *percentile(found), "one seed, bootstrap")
    return Gap(first, second, *shared, value)


def _drawn(
    report: Results, alone: Mapping[str, Sequence[str]], correct: Mapping[str, Mapping[str, Bits]]
) -> dict[str, list[Envelope]]:
    """Fronts of one seed on images drawn anew, the same images for all."""
    parts = report.protocol.get("means", {}).get(report.under_shift, [report.under_shift])
    models = list(dict.fromkeys(model for row in alone.values() for model in row))
    if len(alone) < 2 or not all(set(parts) <= set(correct.get(m, {})) for m in models):
        return {}
    rng = np.random.default_rng(0)
    sets = [str(report.reference), *parts]
    found = [drawn_accuracies(np.stack([correct[m][s] for m in models], 1), rng) for s in sets]
    pairs = np.stack([found[0], np.mean(found[1:], 0)], 2)
    places = {name: [models.index(model) for model in row] for name, row in alone.items()}
    return {name: [Envelope(draw[own]) for draw in pairs] for name, own in places.items()}


def _adjusted(gaps: Sequence[Gap]) -> list[Gap]:
    """Gaps with the p-values that Holm's correction over all of them gives."""
    known = [gap.p_value for gap in gaps if gap.p_value is not None]
    adjusted = iter(holm(known))
    return [g if g.p_value is None else replace(g, adjusted=next(adjusted)) for g in gaps]
