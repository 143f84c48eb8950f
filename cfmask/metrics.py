"""Metrics: exact counts and their intervals. Pure functions.

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cfmask.errors import InputError


def right(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Which images are classified right, bool (N,).

    Args:
        logits: float (N, K).
        labels: int64 (N,) in [0, K).
        classes: if given, the argmax is taken among these classes alone.

    Raises:
        InputError: a label outside the head or outside `classes`.
    """
    count = logits.shape[1]
    allowed = torch.arange(count) if classes is None else torch.tensor(sorted(classes))
    if not torch.isin(labels.cpu(), allowed).all():
        raise InputError(
            f"Expected labels among the {len(allowed)} classes of the head, but got others; does "
            "the set have other classes than the classifier?"
        )
    allowed = allowed.to(logits.device)
    return allowed[logits[:, allowed].argmax(1)] == labels


def interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, as fractions in [0, 1].

    Args:
        correct: in [0, total].
        total: at least 1.
        confidence: in (0, 1).
    """
    from scipy.stats import binomtest

    bounds = binomtest(correct, total).proportion_ci(confidence, method="exact")
    return float(bounds.low), float(bounds.high)


def mean_interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """Unweighted mean of accuracies with its 95 % interval, as fractions in [0, 1].

    The sets are independent, so their binomial variances add; the interval is the normal one.

    Args:
        counts: (correct, total) of each set.

    Returns:
        Mean, low, high.
    """
    shares = [correct / total for correct, total in counts]
    mean = sum(shares) / len(shares)
    variance = sum(p * (1 - p) / n for p, (_, n) in zip(shares, counts)) / len(shares) ** 2
    reach = 1.959963984540054 * math.sqrt(variance)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)
