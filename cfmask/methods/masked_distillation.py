"""Fine-tuning with distillation on counterfactual images: the method this project is for."""

from __future__ import annotations

from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import Counterfactual, check_donors
from cfmask.data.datamodule import TrainingData
from cfmask.methods.distillation import Distance, Distillation
from cfmask.relevance import AttentionRelevance, Relevance


class MaskedDistillation(Distillation):
    """Cross-entropy on clean images, distance to the teacher on counterfactual ones.

    The forward pass that the task loss uses also makes the relevance, from the student as it is now
    and for the true class.

    Args:
        classifier: see `Method`. A frozen copy of it, made now, is the teacher.
        counterfactual: mask and fill.
        relevance: what says which patches carry the class; attention relevance suits transformers
            and Grad-CAM suits CNNs.
        distance: see `Distillation`.
        distill_weight: see `Distillation`.
        temperature: see `Distillation`.
        lr: see `Method`.
        weight_decay: see `Method`.
        betas: see `Method`.
        warmup: see `Method`.
        task_weight: see `Method`.

    Source: Xiao et al. 2023, "Masked Images Are Counterfactual Samples for Robust Fine-tuning"
    (arXiv 2303.03052).
    """

    def __init__(
        self,
        classifier: Classifier,
        counterfactual: Counterfactual,
        relevance: Relevance | None = None,
        distance: Distance = "feature",
        distill_weight: float = 30.0,
        temperature: float = 10.0,
        lr: float = 3e-5,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.02,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__(
            classifier,
            distance,
            distill_weight,
            temperature,
            lr,
            weight_decay,
            betas,
            warmup,
            task_weight,
        )
        self.counterfactual = counterfactual
        self.relevance = relevance or AttentionRelevance()

    def check(self, data: TrainingData) -> None:
        """See `Method.check`. A refill needs a second image to take from."""
        super().check(data)
        if self.counterfactual.fill.needs_donors:
            check_donors(data.batch_size)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.losses`."""
        if self.counterfactual.mask.needs_relevance:
            logits, relevance = self.relevance.explain(self.classifier, images, labels)
        else:
            logits = self.classifier(images)
            relevance = images.new_zeros(len(images), *self.classifier.grid)
        masked, replaced = self.counterfactual(images, relevance)
        self.log("masked_share", replaced.float().mean())
        hidden = replaced if self.counterfactual.fill.removes else None
        features = self.classifier.features(masked, hidden)
        return logits, {"distill": self.distill(features, masked, hidden)}
