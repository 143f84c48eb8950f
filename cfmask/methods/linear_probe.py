"""Linear probe."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.methods.base import Method


class LinearProbe(Method):
    """Cross-entropy on clean images, only the head trained.

    Args:
        classifier: see `Method`.
        lr: peak learning rate.
        weight_decay: AdamW's, on the head.
        betas: AdamW's.
        warmup: share of the steps in which the learning rate rises, in [0, 1].
        cycle_momentum: of the released code; see `Method`.
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.02,
        cycle_momentum: bool = False,
    ) -> None:
        super().__init__(classifier, lr, weight_decay, betas, warmup, cycle_momentum=cycle_momentum)
        classifier.encoder.requires_grad_(False)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        with torch.no_grad():
            features = self.classifier.features(images)
        return {"task": self.task_loss(self.classifier.classify(features), labels)}

    def passes(self) -> float:
        """See `Method.passes`. Nothing goes back through the encoder."""
        return 1.0

    def train(self, mode: bool = True) -> LinearProbe:
        """The frozen encoder stays in eval mode."""
        super().train(mode)
        self.classifier.encoder.eval()
        return self
