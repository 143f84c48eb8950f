"""Trainer: Lightning's, with a precision that follows the machine."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.accelerator_connector import _PRECISION_INPUT

from cfmask.precision import bf16_unit


class Trainer(pl.Trainer):
    """Lightning's trainer, which also takes `auto` for its precision.

    Attributes:
        why: what decided on the precision, if it was `auto`; else empty.
    """

    def __init__(
        self, *, precision: Literal["auto"] | _PRECISION_INPUT | None = None, **settings: Any
    ) -> None:
        """Build the trainer.

        Args:
            precision: as Lightning names it; `auto` is bf16-mixed where a GPU or the processor
                multiplies matrices in bf16, else 32-true.
            settings: Lightning's own.
        """
        self.why = ""
        if precision == "auto":
            unit = bf16_unit(_kind(settings.get("accelerator", "auto")))
            self.why = f"auto: {unit or 'no instructions for bf16'}"
            precision = "bf16-mixed" if unit else "32-true"
        super().__init__(precision=precision, **settings)


def _kind(accelerator: object) -> str:
    """Type of the device that Lightning will take for an accelerator."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return str(accelerator)
