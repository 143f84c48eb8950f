"""Estimates: shares, calibration, comparison, and their intervals. Pure functions.

Letters: N images. All intervals are of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15
COVERAGE = 0.9
# Quantile of the normal distribution that leaves 2.5 % above it.
Z = 1.959963984540054


def interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of correct / total, total at least 1, as fractions in [0, 1]."""
    from scipy.stats import binomtest

    bounds = binomtest(correct, total).proportion_ci(confidence, method="exact")
    return float(bounds.low), float(bounds.high)


def combined(
    counts: Sequence[tuple[int, int]], weights: Sequence[float], constant: float = 0.0
) -> tuple[float, float, float]:
    """Constant + sum of weight · accuracy, with its 95 % interval: value, low, high.

    The sets are taken as independent, so their binomial variances add; the interval is the normal
    one. For sets that show the same images in two ways it is too wide rather than too narrow. That
    of a mean (weights of sum 1, none negative) is clipped to [0, 1].

    Args:
        counts: (correct, total) of each set.
        weights: of each set.
        constant: what is added.
    """
    shares = [correct / total for correct, total in counts]
    value = constant + sum(w * p for w, p in zip(weights, shares))
    variance = sum(w * w * p * (1 - p) / n for w, p, (_, n) in zip(weights, shares, counts))
    reach = Z * math.sqrt(variance)
    low, high = value - reach, value + reach
    if constant == 0 and min(weights) >= 0 and math.isclose(sum(weights), 1):
        low, high = max(0.0, low), min(1.0, high)
    return value, low, high


def mean_with_interval(values: Tensor) -> tuple[float, float, float]:
    """Mean of values (N,) with the normal interval of it: value, low, high."""
    exact = values.double()
    mean = float(exact.mean())
    reach = Z * float(exact.std()) / math.sqrt(len(exact)) if len(exact) > 1 else math.inf
    return mean, mean - reach, mean + reach


def harmonic(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Harmonic mean of two accuracies; arguments and result are value, low and high.

    Both are taken as independent; the interval is by the delta method, clipped to [0, 1].
    """
    (a, low_a, high_a), (b, low_b, high_b) = first, second
    value = 2 * a * b / (a + b) if a + b else 0.0
    # Where both are 0 the slopes are those of equal accuracies.
    slopes = (2 * (b / (a + b)) ** 2, 2 * (a / (a + b)) ** 2) if a + b else (0.5, 0.5)
    reach = math.hypot(slopes[0] * (high_a - low_a), slopes[1] * (high_b - low_b)) / 2
    return value, max(0.0, value - reach), min(1.0, value + reach)


def calibration_bins(confidence: Tensor, correct: Tensor) -> dict[str, list[float]]:
    """Images, sum of confidence and right answers in 15 equal-width bins of confidence.

    Bin i holds confidences in (i/15, (i+1)/15]; the first one holds 0 too. Confidence is float (N,)
    in [0, 1], correct bool (N,).

    Source: Guo et al. 2017 (arXiv 1706.04599), section 2.
    """
    edges = (torch.arange(1, BINS, dtype=torch.float64) / BINS).to(confidence.dtype)
    place = torch.bucketize(confidence, edges)
    return {
        "count": torch.bincount(place, minlength=BINS).tolist(),
        "confidence": torch.bincount(place, confidence.double(), BINS).tolist(),
        "correct": torch.bincount(place[correct], minlength=BINS).tolist(),
    }


def expected_calibration_error(bins: dict[str, list[float]]) -> float:
    """ECE in [0, 1] of what `calibration_bins` counts over a whole set.

    Sum over the bins of |right answers - sum of confidence|, by the number of images.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    gaps = (abs(right - said) for right, said in zip(bins["correct"], bins["confidence"]))
    return sum(gaps) / sum(bins["count"])


def selective(confidence: Tensor, correct: Tensor) -> tuple[int, int]:
    """Right ones and number of the 90 % of images that have the highest confidence.

    The number is rounded up. Of images with equal confidence wrong ones come first, so that the
    order of the images does not matter. Confidence is float (N,), correct bool (N,).
    """
    total = math.ceil(COVERAGE * len(correct))
    wrong_first = correct.sort(stable=True).indices
    kept = wrong_first[confidence[wrong_first].sort(descending=True, stable=True).indices[:total]]
    return int(correct[kept].sum()), total


def paired_difference(only_first: int, only_second: int, total: int) -> tuple[float, float, float]:
    """Accuracy of a second model minus that of a first on `total` images: value, low, high.

    `only_first` images are answered right by the first alone, `only_second` by the second alone.

    Source: interval of Bonett and Price 2012 (Journal of Educational and Behavioral Statistics
    37), as Fagerland et al. 2014 (Statistics in Medicine 33) recommend for paired binomials.
    """
    p, q = (only_second + 1) / (total + 2), (only_first + 1) / (total + 2)
    reach = Z * math.sqrt((p + q - (p - q) ** 2) / (total + 2))
    low, high = max(-1.0, p - q - reach), min(1.0, p - q + reach)
    return (only_second - only_first) / total, low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: that both models are right equally often."""
    from scipy.stats import binomtest

    changed = only_first + only_second
    return float(binomtest(only_first, changed).pvalue) if changed else 1.0
