"""The average of the weights that a run has passed through, beside the last ones."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.methods import Method
from cfmask.methods.averages import Average, move, need_whole_weights


class TrajectoryAverage(Callback):
    """Averages the classifier after every optimiser step, beside a training that it leaves alone.

    It is a copy of the weights on the device, is kept in checkpoints, and covers the whole run,
    whichever epoch is chosen.

    Args:
        average: which.
    """

    def __init__(self, average: Average) -> None:
        self.average = average
        self._step = 0
        self._weights: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See `Callback.setup`.

        Raises:
            InputError: a strategy whose devices hold parts of the weights.
        """
        need_whole_weights(trainer, "--average")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The starting point is the average of no step."""
        now = _floats(pl_module)
        if not self._weights:
            self._weights = {name: value.detach().clone() for name, value in now.items()}
        self._weights = {name: old.to(now[name].device) for name, old in self._weights.items()}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in the weights of a step, once it is made."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            share = self.average.share(self._step, int(trainer.estimated_stepping_batches))
            now = _floats(pl_module)
            move(self._weights.values(), (now[name] for name in self._weights), share)

    def classifier(self, method: Method) -> Classifier:
        """The classifier of a method with these weights."""
        averaged = method.made_of(self._weights)
        averaged.head_from = "training"
        return averaged

    def bytes(self, method: Method) -> int:
        """Memory that the average of a method takes on the device."""
        return sum(value.nbytes for value in _floats(method).values())

    def state_dict(self) -> dict[str, Any]:
        """The average as checkpoints keep it."""
        return {"step": self._step, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._step, self._weights = int(state_dict["step"]), dict(state_dict["weights"])


def _floats(method: pl.LightningModule) -> dict[str, Tensor]:
    assert isinstance(method, Method)
    return {name: value for name, value in method.tuned().items() if value.is_floating_point()}
