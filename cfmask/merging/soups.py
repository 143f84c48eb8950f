"""Soups: models tuned from one starting point -> one whose weights are a mean of theirs.

Means are taken in float64. What is no float (batch norm's count of batches) is the first model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from cfmask.checkpoint import average, check_alike
from cfmask.classifier import Classifier
from cfmask.errors import InputError


def greedy_soup(
    candidates: Sequence[Classifier], score: Callable[[Classifier], float]
) -> tuple[Classifier, list[int], list[float]]:
    """The best model, then every other one, best first, that makes the mean strictly better.

    Args:
        candidates: N >= 1 models tuned from one starting point.
        score: accuracy on held-out images of the training distribution; it is asked at most
            2N - 1 times.

    Returns:
        The soup, the places of its models among the candidates in the order in which they were
        added, and the score of each candidate by itself.

    Raises:
        InputError: no candidates, or two architectures.

    Source: Wortsman et al. 2022 (arXiv 2203.05482), "greedy soup", as mlfoundations/model-soups
    has it: a running mean, and a model that leaves the score equal is not added.
    """
    average(candidates[:1])
    for other in candidates[1:]:
        check_alike(candidates[0], other)
    alone = [score(candidate) for candidate in candidates]
    first, *others = sorted(range(len(candidates)), key=lambda k: -alone[k])
    soup, best, kept = candidates[first], alone[first], [first]
    for place in others:
        wider = average([candidates[k] for k in (*kept, place)])
        found = score(wider)
        if found > best:
            soup, best, kept = wider, found, [*kept, place]
    return copy.deepcopy(soup), kept, alone


def model_stock(
    start: Classifier, tuned: Sequence[Classifier]
) -> tuple[Classifier, dict[str, float]]:
    """Model Stock: each tensor of the mean, drawn to the start by the angle between the models.

    With N models, deltas d_i = w_i - w_0 of a tensor and c the mean cosine of all pairs of them,
    w = t mean(w_i) + (1 - t) w_0, where t = N c / (1 + (N - 1) c). Where c is not above 0, which
    the formula is not made for, t is 0: what the models do not agree on stays as it was. A tensor
    that no model has moved has t = 1.

    Args:
        start: the starting point of all.
        tuned: N >= 2 models, tuned alike but for the seed.

    Returns:
        The model, and t in [0, 1] of every tensor of floats by its name.

    Raises:
        InputError: fewer than two models, or two architectures.

    Source: Jang et al. 2024 (arXiv 2403.19522), section 4; the authors' repository holds no code,
    and the guard is ours.
    """
    if len(tuned) < 2:
        raise InputError(f"Expected at least 2 models for Model Stock, but got {len(tuned)}.")
    mean = average(tuned)
    check_alike(start, mean)
    old, states = start.state_dict(), [model.state_dict() for model in tuned]
    weights, shares = mean.state_dict(), {}
    for name, value in weights.items():
        if value.is_floating_point():
            shares[name] = _stock_share([state[name] - old[name] for state in states])
            weights[name] = torch.lerp(old[name].double(), value.double(), shares[name]).to(value)
    mean.load_state_dict(weights)
    return mean, shares


def _stock_share(deltas: Sequence[Tensor]) -> float:
    """How far the mean of a tensor is followed, in [0, 1]."""
    flat = torch.stack([delta.double().flatten() for delta in deltas])
    if not flat.any():
        return 1.0
    unit = torch.nn.functional.normalize(flat, dim=1)
    cosines = [float(unit[i] @ unit[j]) for i, j in combinations(range(len(unit)), 2)]
    count, cosine = len(deltas), min(1.0, sum(cosines) / len(cosines))
    return count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0
