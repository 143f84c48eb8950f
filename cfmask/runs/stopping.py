"""Stopping: a training that receives a signal ends after the current step."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cfmask.data.epochs import STOPS
from cfmask.internals import forget_sigterm
from cfmask.terminal import NO_READER, reader_is_gone

READER_GONE = "the end of its output's reader"


class Stopping(Callback):
    """Ends a run that a scheduler, a terminal or Ctrl-C stops, on all devices after the same step.

    A signal that was ignored when the run began, as SIGHUP under nohup, stays ignored. A second
    Ctrl-C ends the run at once.

    Attributes:
        reason: the signal or event that told the run to stop; empty if none has.
        code: exit code that goes with it.
        agreed: whether all devices know that they stop after this step.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.code = 0
        self.agreed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen in place of Lightning, which would stop where nothing can be saved."""
        if threading.current_thread() is threading.main_thread():
            # Lightning puts back the handlers that were there before the run.
            for number in STOPS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._on_signal)
        if trainer.received_sigterm:
            # It came while the run was being set up.
            forget_sigterm(trainer)
            self._on_signal(signal.SIGTERM, None)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason, self.code = signal.Signals(number).name, 128 + number

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Agree to stop, before checkpoints are written."""
        if not within_step(trainer, batch_idx):
            self._agree(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree to stop, before checkpoints are written."""
        self._agree(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, now that the metrics of the step before are written too."""
        if self.agreed:
            raise SIGTERMException

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, now that the metrics of the epoch before are written too."""
        if self.agreed:
            raise SIGTERMException

    def _agree(self, trainer: pl.Trainer) -> None:
        if not self.reason and reader_is_gone():
            self.reason, self.code = READER_GONE, NO_READER
        self.agreed = self.agreed or any_device(trainer, bool(self.reason))


def within_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True while gradients are being accumulated, which no checkpoint holds."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0


def any_device(trainer: pl.Trainer, wanted: bool) -> bool:
    """Whether any device wants it, the same answer on all."""
    if trainer.world_size == 1:
        return wanted
    decided: bool = trainer.strategy.reduce_boolean_decision(wanted, all=False)
    return decided
