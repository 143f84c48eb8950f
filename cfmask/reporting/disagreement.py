"""Disagreement: an image that one of two models gets right and the other wrong.

Letters: (H, W) pixels, (h, w) patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Attributes:
        model: name of the model's row.
        name: of the class that it takes, among the classes of the set.
        confidence: probability of the answer, in [0, 1]; see `LabelRule`.
        right: whether the set accepts it.
        relevance: float (h, w) in [0, 1], of the true class's logit; None if the model gives none.
        explainer: what made it, in words.
    """

    model: str
    name: str
    confidence: float
    right: bool
    relevance: Tensor | None
    explainer: str = ""


@dataclass(frozen=True)
class Disagreement:
    """An image and two answers, one right and one wrong.

    Attributes:
        shift: name of the set.
        index: of the image in the set.
        label: name of the true class; of several accepted ones, separated by " / ".
        image: uint8 (3, H, W).
        first: answer of the first model.
        second: answer of the second.
        file: name of the image's file; empty if it is not in one.
    """

    shift: str
    index: int
    label: str
    image: Tensor
    first: Answer
    second: Answer
    file: str = ""
