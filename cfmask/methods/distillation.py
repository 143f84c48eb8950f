"""Fine-tuning with distillation from the frozen pretrained model, on clean images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.losses import feature_mse, logit_kl, relative_feature_mse
from cfmask.methods.base import Method
from cfmask.methods.encoders import compile_encoder
from cfmask.methods.recipe import Recipe
from cfmask.methods.teacher import frozen_copy, to_bf16

Distance = Literal["feature", "relative_feature", "logit"]


class Distilling(Recipe, total=False):
    """What `Distillation` takes beside the classifier."""

    distance: Distance
    distill_weight: float
    temperature: float
    bf16_teacher: bool


class Distillation(Method):
    """Cross-entropy and a distance between student and teacher, both on clean images.

    Args:
        classifier: see `Method`. A frozen copy of it, made now, is the teacher.
        distance: `feature` (mean squared error of the features), `relative_feature` (the same in
            units of the mean squared teacher feature) or `logit` (KL divergence).
        distill_weight: weight of the distance. 30 is the paper's for `feature` on CLIP ViT-B/32.
        temperature: of the logit distance.
        bf16_teacher: keep and run the teacher in bfloat16: half its memory. Under bf16-mixed
            training it always is, with the same result as without.
        **recipe: see `Method`. Mixed images are passed through the student beside the clean ones.

    Source: the clean-image rows of arXiv 2303.03052, table 3.
    """

    def __init__(
        self,
        classifier: Classifier,
        distance: Distance = "feature",
        distill_weight: float = 30.0,
        temperature: float = 10.0,
        bf16_teacher: bool = False,
        **recipe: Unpack[Recipe],
    ) -> None:
        super().__init__(classifier, **recipe)
        if temperature <= 0 or distill_weight < 0:
            raise InputError(
                "Expected temperature > 0 and distill_weight >= 0, but got "
                f"{temperature} and {distill_weight}."
            )
        self.distance = distance
        self.distill_weight = distill_weight
        self.temperature = temperature
        self.bf16_teacher = bf16_teacher
        self.teacher = frozen_copy(classifier)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`. The teacher takes the precision it is to have."""
        super().on_fit_start()
        if self.bf16_teacher or self.trainer.precision == "bf16-mixed":
            to_bf16(self.teacher)
        if self.compiled is True:
            compile_encoder(self.teacher)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        features = self.classifier.features(images)
        if self.mixing:
            task = self.task_of(images, labels)
        else:
            task = self.task_loss(self.classifier.classify(features), labels)
        return {"task": task, "distill": self.distill(features, images)}

    def passes(self) -> float:
        """See `Method.passes`. The teacher makes one; mixed images are another pass."""
        return super().passes() * (2 if self.mixing else 1) + 1

    def distill(
        self,
        features: Tensor,
        images: Tensor,
        hidden: Tensor | None = None,
        visible: int | None = None,
    ) -> Tensor:
        """Weighted distance of the student's features (B, D) of these images to the teacher's."""
        target = self.teach(images, hidden, visible)
        if self.distance == "logit":
            student, teacher = self.classifier.classify(features), self.teacher.classify(target)
            return self.distill_weight * logit_kl(student, teacher, self.temperature)
        measure = feature_mse if self.distance == "feature" else relative_feature_mse
        return self.distill_weight * measure(features, target)

    def teach(
        self, images: Tensor, hidden: Tensor | None = None, visible: int | None = None
    ) -> Tensor:
        """Features (B, D) of the teacher, without graph; see `Classifier.features`."""
        kind = images.device.type
        reduced = self.bf16_teacher or torch.is_autocast_enabled(kind)
        precision = torch.bfloat16 if self.bf16_teacher else torch.get_autocast_dtype(kind)
        with torch.inference_mode(), torch.autocast(kind, precision, enabled=reduced):
            features = self.teacher.features(images, hidden, visible)
        # Outside of inference mode a copy may meet the student's graph.
        return features.clone()
