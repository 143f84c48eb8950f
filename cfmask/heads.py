"""Heads: features (B, D) -> logits (B, K).

A linear head is `torch.nn.Linear`. A zero-shot head is made from text by the tower that belongs to
the image tower. Both are trained with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask import processes
from cfmask.errors import InputError, unknown

# Prompt for classes of one's own.
PROMPT = ("a photo of a {}.",)
HeadOrigin = Literal["text", "weights", "probe", "training", "chance"]
# Where a head may come from.
HEAD_ORIGINS: dict[HeadOrigin, str] = {
    "text": "made from the class names by the text tower",
    "weights": "the one that the pretrained weights bring",
    "probe": "fitted to the frozen encoder's features of the training images",
    "training": "trained with its encoder",
    "chance": "random, as nothing has fitted it",
}


class ZeroShotHead(nn.Module):
    """Logits W · f/‖f‖ + b.

    Args:
        weight: float (K, D), as `zero_shot_weight` makes it.
        bias: b of every class at the start: 0 for CLIP, the logit bias for SigLIP.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.full((len(weight),), bias))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D), not normalised, to logits (B, K)."""
        return F.linear(F.normalize(features, dim=-1), self.weight, self.bias)


# Kind of a head in a spec -> a head of K classes and D features, its weights still to be loaded.
HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda classes, width: nn.Linear(width, classes),
    # The linear one that pretrained weights brought.
    "own": lambda classes, width: nn.Linear(width, classes),
    # Logits that come as they are.
    "none": lambda classes, width: nn.Identity(),
    "zero_shot": lambda classes, width: ZeroShotHead(torch.zeros(classes, width)),
}


def empty_head(kind: str, classes: int, width: int) -> nn.Module:
    """A head of `HEADS`; an InputError for another kind names the nearest."""
    if kind not in HEADS:
        raise unknown("kind of head", kind, HEADS)
    return HEADS[kind](classes, width)


def fit_linear_head(
    head: nn.Linear, features: Tensor, labels: Tensor, weights: Tensor | None = None
) -> None:
    """Set a linear head to the logistic regression of labels on features.

    The regression is L2-regularised with C = 1 on features of unit mean square, as scikit-learn's
    `LogisticRegression`: with two classes, one row of weights is regularised. A class without
    images keeps a row of zeros.

    Args:
        head: D to K, changed in place.
        features: float (N, D), on the device that computes.
        labels: int64 (N,) in [0, K), at least two different.
        weights: float (N,) of mean 1, of the images; None weighs them alike.

    Raises:
        InputError: images of one class only, or features that are no numbers.
    """
    known, targets = labels.to(features.device).unique(return_inverse=True)
    if len(known) < 2:
        raise InputError("Expected images of at least 2 classes to fit a head, but got 1.")
    if not features.isfinite().all():
        raise InputError(
            "Expected finite features to fit a head to, but got NaN or infinity; are the weights "
            "of the encoder sound?"
        )
    # Apple's GPUs have no float64.
    features, targets = (x.cpu() if x.device.type == "mps" else x for x in (features, targets))
    scale = features.square().mean().sqrt().clamp(min=1e-12)
    shares = None if weights is None else weights.to(targets.device).double()
    weight, bias = _regression((features / scale).double(), targets, len(known), shares)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[known.to(head.weight.device)] = (weight / scale).to(head.weight)
        head.bias[known.to(head.bias.device)] = bias.to(head.bias)


def _regression(
    features: Tensor, targets: Tensor, classes: int, shares: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) that L-BFGS finds for float64 (N, D) and int64 (N,) in [0, K).

    `shares` float64 (N,) weigh the images.
    """
    several = classes > 2
    rows = features.new_zeros(classes if several else 1, features.shape[1] + 1, requires_grad=True)
    # The mean over images is to be flat to this, a thousandth of what scikit-learn asks for.
    solver = torch.optim.LBFGS(
        [rows], 1, 1000, 5000, 1e-7, 0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        logits = features @ rows[:, :-1].T + rows[:, -1]
        logits = logits if several else torch.cat([-logits / 2, logits / 2], 1)
        penalty = rows[:, :-1].square().sum() / (2 * len(targets))
        each = F.cross_entropy(logits, targets, reduction="none")
        loss = (each if shares is None else shares * each).mean() + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    found = rows.detach()
    found = found if several else torch.cat([-found / 2, found / 2])
    return found[:, :-1], found[:, -1]


@torch.no_grad()
def zero_shot_weight(
    clip: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """Weight of a zero-shot head from text.

    Row k: embed every template filled with class name k, L2-normalise each, average, L2-normalise,
    multiply by exp(logit_scale).

    Args:
        clip: a model with `encode_text` and `logit_scale`; left on the CPU.
        tokenizer: texts -> int64 (N, context length).
        class_names: K names.
        templates: prompts with one `{}` each for the name.

    Returns:
        float (K, D).

    Raises:
        InputError: no names, no templates, or a template without `{}`.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4.
    """
    check_prompts(class_names, templates)
    # Thousands of prompts take minutes on a CPU.
    clip.to(processes.device())
    rows = []
    for name in class_names:
        tokens = tokenizer([template.format(name) for template in templates])
        rows.append(F.normalize(text_features(clip, tokens), dim=-1).mean(0))
    scale: Any = clip.logit_scale
    weight: Tensor = F.normalize(torch.stack(rows), dim=-1) * scale.exp()
    clip.to("cpu")
    return weight.cpu()


def text_features(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Text features (N, D) of int64 (N, context length) tokens, not normalised."""
    encode: Any = clip.encode_text
    features: Tensor = encode(tokens.to(next(clip.parameters()).device))
    return features


def check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise an InputError unless there are class names and templates with one `{}` each."""
    if not class_names:
        raise InputError("Expected the class names for a zero-shot head, but got none.")
    if not templates:
        raise InputError(
            "Expected at least one prompt template for a zero-shot head, but got none."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(
                f"Expected prompt templates with one {{}} for the class name, but got {template!r}."
            )
