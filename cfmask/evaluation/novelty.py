"""Novelty: how well a score tells images of known classes from images of unknown ones.

A score is higher for an image that looks known. Letters: N images of known classes, M of unknown
ones. All results are value, low and high with a 95 % interval, whose ends are NaN where there is
none; ties count half.

Source: Vaze et al. 2022 (arXiv 2110.06207), the Semantic Shift Benchmark.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmask.evaluation.estimates import Z, interval

Figure = tuple[float, float, float]
# Share of the known images that is accepted where false positives are counted.
ACCEPTED = 0.95
# Points of the curve that a report keeps, evenly spread.
POINTS = 21


def auroc(known: Tensor, unknown: Tensor) -> Figure:
    """Probability that a score (N,) of a known image is above one (M,) of an unknown one.

    Source: the interval is of DeLong et al. 1988 (Biometrics 44), clipped to [0, 1]; there is none
    where every pair agrees.
    """
    return _pairs(known, unknown, torch.ones(len(known), dtype=torch.bool))


def oscr(known: Tensor, unknown: Tensor, correct: Tensor) -> Figure:
    """Area under the open-set classification rate.

    That is the share of known images that are answered right with a score above a threshold, by the
    share of unknown ones above it: an AUROC in which a wrong answer lies below everything. The
    interval is DeLong's for these pairs.

    Args:
        known: float (N,).
        unknown: float (M,).
        correct: bool (N,), right answers to the known images.

    Source: Dhamija et al. 2018 (arXiv 1811.04110), section 4.
    """
    return _pairs(known, unknown, correct)


def _pairs(known: Tensor, unknown: Tensor, kept: Tensor) -> Figure:
    """Share of all pairs in which a kept known score is above an unknown one."""
    own, n = kept.double(), len(known)
    # Of each known score the share of unknown ones below it, and of each unknown one those above.
    above_unknown = own * _below(unknown, torch.ones(len(unknown)), known) / len(unknown)
    above = (own.sum() - _below(known, own, unknown)) / n
    value = float(above_unknown.mean())
    variance = _variance(above_unknown) + _variance(above)
    if not variance > 0:
        return value, math.nan, math.nan
    reach = Z * math.sqrt(variance)
    return value, max(0.0, value - reach), min(1.0, value + reach)


def _below(scores: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """Total weight of the scores below each of `at`, that of equal ones half."""
    order = scores.argsort()
    total = torch.cat([torch.zeros(1).double(), weights[order].double().cumsum(0)])
    first, last = (torch.searchsorted(scores[order], at, right=right) for right in (False, True))
    return (total[first] + total[last]) / 2


def _variance(values: Tensor) -> float:
    """Of the mean of values (N,); NaN for one."""
    return float(values.var()) / len(values) if len(values) > 1 else math.nan


def fpr(known: Tensor, unknown: Tensor) -> Figure:
    """Share of unknown images that are accepted where 95 % of the known ones are (FPR95).

    Known is positive. The threshold is the highest one that at least 95 % of the known scores (N,)
    reach; an image whose score reaches it is accepted. The interval covers the threshold too: from
    the order statistics between which its quantile lies and the Clopper-Pearson intervals of the
    unknown scores (M,) above them, each at 97.5 %, so that it is rather too wide.
    """
    from scipy.stats import binom

    falling, n, m = known.sort(descending=True).values, len(known), len(unknown)
    half = 0.0125
    fewest, most = (int(binom.ppf(p, n, ACCEPTED)) for p in (half, 1 - half))

    def accepted(rank: int) -> int:
        """Number of unknown images that reach the known score of a rank, counted from 1."""
        return m if rank > n else 0 if rank < 1 else int((unknown >= falling[rank - 1]).sum())

    low = interval(accepted(fewest), m, 1 - 2 * half)[0]
    high = interval(accepted(most + 1), m, 1 - 2 * half)[1]
    return accepted(math.ceil(ACCEPTED * n - 1e-9)) / m, low, high


def average_precision(known: Tensor, unknown: Tensor) -> Figure:
    """Average precision in finding the unknown images (M,) by a low score; ties count as one.

    It depends on how many of the images are unknown.

    Source: the interval is the logit one of Boyd et al. 2013 (ECML PKDD); none at 0 and 1.
    """
    scores = torch.cat([known, unknown])
    is_unknown = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).double()
    order = scores.argsort()
    last = torch.cat([scores[order].diff() != 0, torch.ones(1, dtype=torch.bool)])
    found = is_unknown[order].cumsum(0)[last]
    taken = (torch.arange(len(scores)) + 1)[last]
    value = float((found.diff(prepend=torch.zeros(1).double()) * found / taken).sum())
    value, m = value / len(unknown), len(unknown)
    if not 0 < value < 1:
        return value, math.nan, math.nan
    middle, reach = math.log(value / (1 - value)), Z / math.sqrt(m * value * (1 - value))
    low, high = (1 / (1 + math.exp(-(middle + side * reach))) for side in (-1, 1))
    return value, low, high


def oscr_curve(known: Tensor, unknown: Tensor, correct: Tensor) -> dict[str, list[float]]:
    """The curve whose area `oscr` is, at evenly spread shares of unknown images.

    Arguments are those of `oscr`. Between two thresholds the curve is a straight line.
    """
    rungs = torch.cat([known, unknown]).unique().flip(0)
    across, up = (
        _reached(unknown, torch.ones(len(unknown)), rungs),
        _reached(known, correct.double(), rungs),
    )
    grid = np.linspace(0, 1, POINTS)
    # At equal shares of unknown images the last point counts: the curve has risen there.
    return {"fpr": grid.tolist(), "ccr": np.interp(grid, across, up).tolist()}


def _reached(scores: Tensor, weights: Tensor, at: Tensor) -> np.ndarray[Any, Any]:
    """Weight of the scores at or above each of `at`, by the number of scores, after a 0."""
    order = scores.argsort(descending=True)
    total = torch.cat([torch.zeros(1).double(), weights[order].double().cumsum(0)])
    ends = torch.searchsorted(-scores[order], -at, right=True)
    return torch.cat([torch.zeros(1).double(), total[ends] / len(scores)]).numpy()
