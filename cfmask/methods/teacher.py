"""Teacher: the frozen model that a student is held to."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cfmask.classifier import Classifier


def frozen_copy(classifier: Classifier) -> Classifier:
    """A copy in eval mode whose parameters get no gradient."""
    return copy.deepcopy(classifier).eval().requires_grad_(False)


def to_bf16(teacher: Classifier) -> None:
    """Weights of matrix products in bfloat16, as autocast would take them at each step anew."""
    for module in teacher.encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            module.to(torch.bfloat16)


def equal_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same names and the same values."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
