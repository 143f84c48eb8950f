"""Metrics: exact counts and their intervals. Pure functions.

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cfmask.errors import InputError


def right(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[int] | None = None,
    accepts: Mapping[int, Sequence[int]] | None = None,
) -> Tensor:
    """Which images are classified right, bool (N,).

    Args:
        logits: float (N, K).
        labels: int64 (N,): classes in [0, K), or keys of `accepts`.
        classes: if given, the argmax is taken among these classes alone.
        accepts: if given, an image is right if the argmax is one of `accepts[label]`.

    Raises:
        InputError: a label outside the head, outside `classes` or outside `accepts`; `classes`
            that the head does not have.
    """
    count = logits.shape[1]
    allowed = torch.arange(count) if classes is None else torch.tensor(sorted(classes))
    known = allowed if accepts is None else torch.tensor(sorted(accepts))
    if not torch.isin(labels.cpu(), known).all():
        owner = "of the head" if accepts is None else "of the set"
        raise InputError(
            f"Expected labels among the {len(known)} classes {owner}, but got others; does the set "
            "have other classes than the classifier?"
        )
    if classes is not None and len(classes) and not 0 <= min(classes) <= max(classes) < count:
        raise InputError(
            f"Expected a head that has class {max(classes)}, but got one of {count} classes; does "
            "the set have other classes than the classifier?"
        )
    allowed = allowed.to(logits.device)
    chosen = allowed[logits[:, allowed].argmax(1)]
    if accepts is None:
        return chosen == labels
    pairs = zip(chosen.tolist(), labels.tolist())
    return torch.tensor([k in accepts[label] for k, label in pairs], device=logits.device)


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


def combined(
    counts: Sequence[tuple[int, int]], weights: Sequence[float], constant: float = 0.0
) -> tuple[float, float, float]:
    """Constant + sum of weight · accuracy, with its 95 % interval.

    The sets are taken as independent, so their binomial variances add; the interval is the normal
    one. For sets that show the same images in two ways it is too wide rather than too narrow.

    Args:
        counts: (correct, total) of each set.
        weights: of each set.
        constant: what is added.

    Returns:
        Value, low, high. A mean's interval (weights of sum 1, none negative) is kept in [0, 1].
    """
    shares = [correct / total for correct, total in counts]
    value = constant + sum(w * p for w, p in zip(weights, shares))
    variance = sum(w * w * p * (1 - p) / n for w, p, (_, n) in zip(weights, shares, counts))
    reach = 1.959963984540054 * math.sqrt(variance)
    low, high = value - reach, value + reach
    if constant == 0 and min(weights) >= 0 and math.isclose(sum(weights), 1):
        low, high = max(0.0, low), min(1.0, high)
    return value, low, high
