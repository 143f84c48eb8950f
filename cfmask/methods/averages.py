"""Averages of the weights that a training passes through, from one step to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor

from cfmask.errors import InputError

Kind = Literal["ema", "beta"]


@dataclass(frozen=True)
class Average:
    """A running average of weights, the starting point among them.

    Attributes:
        kind: `ema`, in which what is older counts less, or `beta`, in which the weights after the
            k-th of N updates count as the density of Beta(shape, shape) at (k + 0.5) / (N + 1):
            below 1 the start and the end most.
        decay: of `ema`, what an update leaves of the average, in [0, 1].
        shape: of `beta`, above 0.

    Raises:
        InputError: values outside of these.

    Source: `beta` is CLIPood's (arXiv 2302.00864) and TRACER's, as their released code has it.
    """

    kind: Kind
    decay: float = 0.999
    shape: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise InputError(f"Expected the decay of an average in [0, 1], but got {self.decay}.")
        if not 0 < self.shape < math.inf:
            raise InputError(f"Expected the shape of an average above 0, but got {self.shape}.")

    @classmethod
    def of(cls, text: str) -> Average:
        """The average that a text names, with the number that goes with its kind or without.

        Args:
            text: `ema`, `beta`, `ema:DECAY` or `beta:SHAPE`.

        Raises:
            InputError: another text, or a number outside of its range.
        """
        kind, given, number = text.partition(":")
        try:
            value = (float(number),) if given else ()
        except ValueError:
            kind = ""
        if kind == "ema":
            return cls("ema", *value)
        if kind == "beta":
            return cls("beta", cls.decay, *value)
        raise InputError(
            f"Expected an average as {', '.join(get_args(Kind))}, ema:0.9998 or beta:0.1, but got "
            f"{text!r}."
        )

    def share(self, update: int, updates: int) -> float:
        """Share of the new weights in the average after an update.

        Args:
            update: its number, from 1; the starting point is number 0.
            updates: how many there will be in all, for `beta`.
        """
        if self.kind == "ema":
            return 1 - self.decay
        return _beta_shares(max(update, updates), self.shape)[update]


@lru_cache(maxsize=4)
def _beta_shares(updates: int, shape: float) -> list[float]:
    places = (torch.arange(updates + 1, dtype=torch.float64) + 0.5) / (updates + 1)
    density = (places * (1 - places)) ** (shape - 1)
    shares: list[float] = (density / density.cumsum(0)).tolist()
    return shares


def need_whole_weights(trainer: pl.Trainer, what: str) -> None:
    """Refuse a strategy whose devices hold parts of the weights.

    Args:
        trainer: with the strategy.
        what: that compares weights, or averages them.

    Raises:
        InputError: FSDP.
    """
    if isinstance(trainer.strategy, FSDPStrategy):
        raise InputError(f"Expected another strategy than FSDP for {what}, but got that; use ddp.")


@torch.no_grad()
def move(average: Iterable[Tensor], weights: Iterable[Tensor], share: float) -> None:
    """Change an average in place: average + share · (weights - average), one tensor at a time."""
    for old, new in zip(average, weights):
        old.lerp_(new.to(old), share)
