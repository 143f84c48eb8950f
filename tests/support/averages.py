"""Weights of a small training after each of its steps, and what an average makes of them."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
from scipy import stats

from cfmask.methods.averages import Average


def weights_of(average: Average, updates: int) -> np.ndarray:
    """What each of the weights counts, the start first, with sum 1."""
    if average.kind == "beta":
        density = stats.beta(average.shape, average.shape).pdf
        counts = density((np.arange(updates + 1) + 0.5) / (updates + 1))
        return counts / counts.sum()
    newest = (1 - average.decay) * average.decay ** np.arange(updates)[::-1]
    return np.concatenate([[average.decay**updates], newest])


class Path(pl.Callback):
    """The classifier's weights in float64, at the start and after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_train_start(self, trainer, module) -> None:
        self.on_train_batch_end(trainer, module)

    def on_train_batch_end(self, trainer, module, *rest) -> None:
        if trainer.global_step == len(self.weights):
            state = module.classifier.state_dict()
            self.weights.append({name: v.double().numpy() for name, v in state.items()})
