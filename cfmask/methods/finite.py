"""Finite: losses and gradients that are no numbers, noted on the device and read now and then.

A look at a value on a GPU waits until all steps before it are done. What is wrong is therefore
noted where it happens, and read when something is logged or saved anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cfmask import processes


class Finding(NamedTuple):
    """Steps that were not finite since the last look.

    Attributes:
        steps: how many.
        first: number of the first of them.
        losses: of the first of them, by name.
    """

    steps: int
    first: int
    losses: dict[str, float]

    def __str__(self) -> str:
        """What was not finite, and where."""
        if all(map(math.isfinite, self.losses.values())):
            return f"The gradient is not finite at step {self.first}"
        parts = ", ".join(f"{name} {value:.3g}" for name, value in self.losses.items())
        return f"The loss is not finite at step {self.first} ({parts})"


class FiniteWatch:
    """Notes on the device which optimiser steps are not finite. Only `read` waits for it."""

    def __init__(self) -> None:
        # Losses of this step by name: of its batches, the first that are not finite, or the last.
        self._losses: dict[str, Tensor] = {}
        # How many steps; number and losses of the first of them.
        self._count: Tensor | None = None
        self._first: dict[str, Tensor] = {}

    def see(self, losses: Mapping[str, Tensor]) -> None:
        """Note the losses of a batch."""
        values = {name: value.detach().float() for name, value in losses.items()}
        if self._losses:
            values = _either(_finite(self._losses), values, self._losses)
        self._losses = values

    def judge(self, step: int, norm: Tensor) -> Tensor:
        """End a step: whether it is not finite in any process, bool () on the device.

        Args:
            step: its number.
            norm: of its gradient.
        """
        entry = {"": torch.full_like(norm, step, dtype=torch.float32), **self._losses}
        wrong = ~norm.isfinite()
        if self._losses:
            wrong = wrong | ~_finite(self._losses)
        wrong = processes.anywhere(wrong)
        if self._count is None:
            self._count = torch.zeros_like(norm, dtype=torch.float32)
        new = wrong & (self._count == 0)
        self._first = _either(new, entry, self._first) if self._first else entry
        self._count = self._count + wrong
        self._losses = {}
        return wrong

    def read(self) -> Finding | None:
        """What was noted since the last look, if anything; the host waits for the device."""
        if self._count is None:
            return None
        count, *values = torch.stack([self._count, *self._first.values()]).tolist()
        first = dict(zip(self._first, values))
        self._count, self._first = None, {}
        return Finding(int(count), int(first.pop("")), first) if count else None


def _finite(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).isfinite().all()


def _either(
    first: Tensor, one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The losses of one step or of another, chosen on the device; what a step lacks is zero."""
    zero = next(iter(one.values())).new_zeros(())
    names = dict.fromkeys([*one, *other])
    return {name: torch.where(first, one.get(name, zero), other.get(name, zero)) for name in names}
