"""Trainer: Lightning's, with a precision that follows the machine."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch

from cfmask.precision import bf16_unit
from cfmask.precision import tf32 as in_tf32

# What Lightning takes, in its own words.
Precision = Literal[
    "32-true",
    "bf16-mixed",
    "16-mixed",
    "bf16-true",
    "16-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
    "bf16",
    "32",
    "16",
    "64",
    32,
    16,
    64,
]


class Trainer(pl.Trainer):
    """Lightning's trainer, which also takes `auto` for its precision.

    Attributes:
        why: what decided on the precision, if it was `auto`; else empty.
    """

    def __init__(
        self,
        *,
        precision: Literal["auto"] | Precision | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | None = None,
        tf32: bool = True,
        **settings: Any,
    ) -> None:
        """Build the trainer.

        Args:
            precision: as Lightning names it; `auto` is bf16-mixed where a GPU or the processor
                multiplies matrices in bf16, else 32-true.
            limit_train_batches: batches of an epoch; a number with a point is the share of them.
            limit_val_batches: batches of a validation, or the share of them.
            overfit_batches: batches to train and validate on, or the share of them.
            val_check_interval: batches from one validation to the next, or the share of an epoch,
                or a time as `00:00:30:00`.
            tf32: on a GPU, multiply matrices in TF32 while training in fp32: several times as fast.
                Evaluation is in full fp32.
            settings: Lightning's own.
        """
        self._tf32 = tf32
        self.why = ""
        if precision == "auto":
            unit = bf16_unit(_kind(settings.get("accelerator", "auto")))
            self.why = f"auto: {unit or 'no instructions for bf16'}"
            precision = "bf16-mixed" if unit else "32-true"
        # Lightning's own types of these reach the command line in an order that depends on what was
        # imported before, and 1 as 1.0 is all of the batches.
        super().__init__(
            precision=precision,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            **settings,
        )

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """See `pl.Trainer.fit`."""
        with in_tf32(self._tf32 and self.strategy.root_device.type == "cuda"):
            super().fit(*args, **kwargs)


def _kind(accelerator: object) -> str:
    """Type of the device that Lightning will take for an accelerator."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return str(accelerator)
