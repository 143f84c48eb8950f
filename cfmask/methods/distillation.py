"""Fine-tuning with distillation from the frozen pretrained model, on clean images."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.losses import feature_mse, logit_kl, relative_feature_mse
from cfmask.methods.averages import Average, move, need_whole_weights
from cfmask.methods.base import Method
from cfmask.methods.encoders import compile_encoder
from cfmask.methods.recipe import Recipe
from cfmask.methods.teacher import check_teacher, frozen_copy, same_encoder, to_bf16

Distance = Literal["feature", "relative_feature", "logit"]


class Distilling(Recipe, total=False):
    """What `Distillation` takes beside the classifier."""

    distance: Distance
    distill_weight: float
    temperature: float
    bf16_teacher: bool
    teacher: Classifier | None
    teacher_average: str | None
    teacher_every: int


class Distillation(Method):
    """Cross-entropy and a distance between student and teacher, both on clean images.

    Args:
        classifier: see `Method`. A frozen copy of it, made now, is the teacher, unless another is
            given.
        distance: `feature` (mean squared error of the features), `relative_feature` (the same in
            units of the mean squared teacher feature) or `logit` (KL divergence).
        distill_weight: weight of the distance. 30 is the paper's for `feature` on CLIP ViT-B/32.
        temperature: of the logit distance.
        bf16_teacher: keep and run the teacher in bfloat16: half its memory. Under bf16-mixed
            training it always is, with the same result as without. Not for one that moves.
        teacher: another model, of the same image size. Features of another encoder are compared
            through a linear map of the student's, which is trained too.
        teacher_average: let the teacher be an average of the student so far, the start among it:
            `ema` or `beta`, or with a number as `ema:0.99`; see `Average`.
        teacher_every: steps from one change of that teacher to the next.
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
        teacher: Classifier | None = None,
        teacher_average: str | None = None,
        teacher_every: int = 1,
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
        if teacher is not None:
            check_teacher(teacher, classifier, distance == "logit")
        if teacher_every < 1:
            raise InputError(f"Expected teacher_every of at least 1, but got {teacher_every}.")
        if teacher_average and (teacher is not None or bf16_teacher):
            raise InputError(
                "Expected a teacher that is a copy of the student, in full precision, for "
                f"teacher_average, but got {'bf16_teacher' if teacher is None else teacher.name}."
            )
        self.teacher = frozen_copy(classifier if teacher is None else teacher)
        self.teacher_average = Average.of(teacher_average) if teacher_average else None
        self.teacher_every = teacher_every
        self.other = teacher is not None and not same_encoder(teacher, classifier)
        self.bridge: nn.Module = nn.Identity()
        if self.other and distance != "logit":
            self.bridge = nn.Linear(classifier.spec.width, self.teacher.spec.width)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`. The teacher takes the precision it is to have."""
        super().on_fit_start()
        if self.teacher_average:
            need_whole_weights(self.trainer, "teacher_average")
        mixed = self.trainer.precision == "bf16-mixed" and not self.teacher_average
        if self.bf16_teacher or mixed:
            to_bf16(self.teacher)
        if self.compiled is True:
            compile_encoder(self.teacher)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `Method.optimizer_step`. A teacher that moves follows the student."""
        super().optimizer_step(*args, **kwargs)
        step, every = self.global_step + 1, self.teacher_every
        if self.teacher_average and step % every == 0:
            updates = int(self.trainer.estimated_stepping_batches) // every
            share = self.teacher_average.share(step // every, updates)
            move(self.teacher.parameters(), self.classifier.parameters(), share)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Method.on_save_checkpoint`. Nothing else could tell a teacher that moves."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher_average:
            checkpoint["teacher"] = self.teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Method.on_load_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        if self.teacher_average:
            self.teacher.load_state_dict(checkpoint["teacher"])

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
        return super().passes() * (2 if self.mixing else 1) + self.taught()

    def taught(self) -> float:
        """Passes that the teacher makes of an image it is shown; nobody knows those of others."""
        return math.nan if self.other else 1.0

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
        return self.distill_weight * measure(self.bridge(features), target)

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
