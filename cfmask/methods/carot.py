"""CaRot: contrastive fine-tuning, calibrated by orthogonality and a moving teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.following import FollowedMethod, projections
from cfmask.methods.recipe import Recipe


class CaRot(FollowedMethod):
    """FLYP's loss, an orthogonal projection, and the answers of a moving teacher.

    Args:
        classifier: see `ContrastiveMethod`.
        distill_weight: of the cross-entropies of the answers to those of the average, summed over
            both directions.
        orthogonal_weight: of ‖PᵀP − I‖, with the image tower's projection P (width, D).
        cross_weight: of ‖P Qᵀ‖, with the text tower's projection Q.
        every: steps from one update of the average to the next.
        first_decay: what the first update leaves of the average; it rises linearly.
        decay: what updates leave of it later on.
        decay_warmup: share of all steps in which it rises.
        **recipe: see `ContrastiveMethod`.

    Source: Oh et al. 2024, "Towards calibrated robust fine-tuning of vision-language models"
    (arXiv 2311.01723), and its released code, which is followed: both norms are Frobenius norms,
    not their squares, and the average takes in the first step.
    """

    def __init__(
        self,
        classifier: Classifier,
        distill_weight: float = 1.5,
        orthogonal_weight: float = 0.2,
        cross_weight: float = 0.05,
        every: int = 500,
        first_decay: float = 0.05,
        decay: float = 0.9,
        decay_warmup: float = 0.2,
        **recipe: Unpack[Recipe],
    ) -> None:
        super().__init__(classifier, **recipe)
        projections(self)
        if every < 1:
            raise InputError(f"Expected every of at least 1 step, but got {every}.")
        self.distill_weight = distill_weight
        self.orthogonal_weight = orthogonal_weight
        self.cross_weight = cross_weight
        self.every = every
        self.decays = first_decay, decay
        self.decay_warmup = decay_warmup

    def share(self, step: int, steps: int) -> float:
        """See `FollowedMethod.share`."""
        first, last = self.decays
        rising = self.decay_warmup * steps
        decay = first + (last - first) * step / rising if step < rising else last
        return 0.0 if step % self.every else 1 - decay

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`; "task" is the contrastive loss."""
        tokens = self.by_class.of(labels, self.by_class.drawn(labels))
        seen, taught = self.embed(images, tokens), self.taught(images, tokens)
        with torch.autocast(images.device.type, enabled=False):
            image, _ = projections(self)
            tilt = image.T @ image - torch.eye(image.shape[1], device=image.device)
            losses = {
                "task": self.contrast(seen),
                "orthogonal": self.orthogonal_weight * torch.linalg.norm(tilt),
                "cross": self.cross_weight * self.cross(),
            }
            if taught:
                own, held = seen.logits, taught.logits
                ways = [F.cross_entropy(o, h.softmax(1)) for o, h in ((own, held), (own.T, held.T))]
                losses["distill"] = self.distill_weight * torch.stack(ways).sum()
        return losses
