"""Fine-tuning with a margin that the class names give."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.heads import ZeroShotHead
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.recipe import Recipe


class CLIPood(FineTuning):
    """Cross-entropy of logits s · (f · t_j - margin · t_y · t_j), the head of text t frozen.

    Classes whose names are alike have to be told apart by less. f is the normalised image feature,
    y its class, s the temperature that the head brings. The source ends with the average of all
    weights by Beta(0.5, 0.5), on ImageNet (0.1, 0.1): `cfmask train --average beta`.

    Args:
        classifier: see `Method`; its head was made from text.
        margin: at least 0.
        **recipe: see `Method`. Of a mixed image, t_y is that of the mixed target.

    Raises:
        InputError: another head.

    Source: Shu et al. 2023 (arXiv 2302.00864). Its code multiplies f - margin · t_y by t_j; the
    paper's margin 1 - t_y · t_j differs by a constant, which no softmax sees.
    """

    def __init__(
        self, classifier: Classifier, margin: float = 0.3, **recipe: Unpack[Recipe]
    ) -> None:
        head = classifier.head
        if classifier.head_from != "text" or not isinstance(head, ZeroShotHead):
            raise InputError(
                f"Expected a head that was made from text for CLIPood, but that of "
                f"{classifier.name} is a {type(head).__name__} from {classifier.head_from}; use an "
                "open_clip model."
            )
        if not margin >= 0:
            raise InputError(f"Expected margin of at least 0, but got {margin}.")
        super().__init__(classifier, **recipe)
        self.margin = margin
        head.requires_grad_(False)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Method.task_loss`."""
        text = self.classifier.head.weight
        assert isinstance(text, Tensor)
        alike = F.normalize(text, dim=1) @ text.T
        nearer = labels @ alike if labels.is_floating_point() else alike[labels]
        return super().task_loss(logits - self.margin * nearer, labels)
