"""Fine-tuning with distillation from the frozen pretrained model, on clean images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.losses import feature_mse, logit_kl, relative_feature_mse
from cfmask.methods.base import Method, frozen_copy

Distance = Literal["feature", "relative_feature", "logit"]


class Distillation(Method):
    """Cross-entropy and a distance between student and teacher, both on clean images.

    Args:
        classifier: see `Method`. A frozen copy of it, made now, is the teacher.
        distance: `feature` (mean squared error of the features), `relative_feature` (the same in
            units of the mean squared teacher feature) or `logit` (KL divergence).
        distill_weight: weight of the distance. 30 is the paper's for `feature` on CLIP ViT-B/32.
        temperature: of the logit distance.
        lr: see `Method`.
        weight_decay: see `Method`.
        betas: see `Method`.
        warmup: see `Method`.
        task_weight: see `Method`.

    Source: the clean-image rows of arXiv 2303.03052, table 3.
    """

    def __init__(
        self,
        classifier: Classifier,
        distance: Distance = "feature",
        distill_weight: float = 30.0,
        temperature: float = 10.0,
        lr: float = 3e-5,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.02,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__(classifier, lr, weight_decay, betas, warmup, task_weight)
        if temperature <= 0 or distill_weight < 0:
            raise InputError(
                "Expected temperature > 0 and distill_weight >= 0, but got "
                f"{temperature} and {distill_weight}."
            )
        self.distance = distance
        self.distill_weight = distill_weight
        self.temperature = temperature
        self.teacher = frozen_copy(classifier)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def probe(self, data: TrainingData) -> None:
        """See `Method.probe`. The teacher gets the same head."""
        super().probe(data)
        self.teacher.head.load_state_dict(self.classifier.head.state_dict())

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.losses`."""
        features = self.classifier.features(images)
        logits = self.classifier.classify(features)
        return logits, {"distill": self.distill(features, images)}

    def distill(self, features: Tensor, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Weighted distance of the student's features (B, D) of these images to the teacher's."""
        with torch.no_grad():
            target = self.teacher.features(images, hidden)
        if self.distance == "logit":
            student, teacher = self.classifier.classify(features), self.teacher.classify(target)
            return self.distill_weight * logit_kl(student, teacher, self.temperature)
        measure = feature_mse if self.distance == "feature" else relative_feature_mse
        return self.distill_weight * measure(features, target)
