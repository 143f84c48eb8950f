"""TRACER: contrastive fine-tuning, held to the trajectory average of both towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.losses import feature_mse, logit_kl
from cfmask.methods.averages import Average
from cfmask.methods.following import FollowedMethod, projections
from cfmask.methods.recipe import Recipe
from cfmask.methods.towers import Embedded


class TRACER(FollowedMethod):
    """FLYP's loss and four distances to the average of all weights that the run has passed through.

    The distances: features of images and of captions; the answers of the student to those of the
    average (KL divergence); the student's features among the other modality's of the average, as
    contrastive loss and as KL divergence. Both directions are halved.

    Args:
        classifier: see `ContrastiveMethod`.
        distill_weight: of the four distances together: a front from in- to out-of-distribution
            accuracy by itself.
        feature_weight: of the distance of features among them, a mean over all their elements.
        cross_weight: of the norm of the product of both projections.
        shape: the average weighs the k-th of N steps as Beta(shape, shape) at (k + 0.5) / (N + 1).
        **recipe: see `ContrastiveMethod`.

    Source: "TRACER" (ICML 2026) and its released code (HesamAsad/TRACER), which is followed, with
    the weights of its ablation over distill_weight: its script named tracer sets all of them to
    zero. The paper gives a weight decay of 0.01, the scripts 0.1.
    """

    def __init__(
        self,
        classifier: Classifier,
        distill_weight: float = 0.9,
        feature_weight: float = 2000.0,
        cross_weight: float = 0.05,
        shape: float = 0.5,
        **recipe: Unpack[Recipe],
    ) -> None:
        super().__init__(classifier, **recipe)
        projections(self)
        self.distill_weight = distill_weight
        self.feature_weight = feature_weight
        self.cross_weight = cross_weight
        self.beta = Average("beta", shape=shape)

    def share(self, step: int, steps: int) -> float:
        """See `FollowedMethod.share`."""
        return self.beta.share(step + 1, steps)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`; "task" is the contrastive loss."""
        tokens = self.by_class.of(labels, self.by_class.drawn(labels))
        seen, taught = self.embed(images, tokens), self.taught(images, tokens)
        with torch.autocast(images.device.type, enabled=False):
            losses = {"task": self.contrast(seen), "cross": self.cross_weight * self.cross()}
            if taught:
                losses["distill"] = self.distill_weight * self.distances(seen, taught)
        return losses

    def distances(self, seen: Embedded, taught: Embedded) -> Tensor:
        """The four distances of a batch to what the average makes of it."""
        features = feature_mse(seen.image, taught.image) + feature_mse(seen.text, taught.text)
        held = taught.logits, taught.logits.T
        own = seen.logits, seen.logits.T
        among = seen.scale * seen.image @ taught.text.T, seen.scale * seen.text @ taught.image.T
        right = torch.arange(len(held[0]), device=held[0].device)
        answers = sum(
            logit_kl(o, h, 1.0) + logit_kl(a, h, 1.0) + F.cross_entropy(a, right)
            for o, h, a in zip(own, held, among)
        )
        return self.feature_weight * features + answers / 2
