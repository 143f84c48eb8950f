"""FLYP: fine-tuning by the loss of pretraining."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.methods.recipe import Recipe
from cfmask.methods.towers import ContrastiveMethod, same_class


class FLYP(ContrastiveMethod):
    """Contrastive loss of images and captions of their classes, both towers trained.

    The mean of two cross-entropies: which caption of the batch belongs to an image, and which image
    to a caption. As in the released code, other images of the same class count as wrong. It draws
    images and captions together, without replacement over all pairs; here each image has one
    caption an epoch, drawn anew.

    Args:
        classifier: see `ContrastiveMethod`.
        skip_same_class: leave pairs of two images of one class out, an option of the released code.
        **recipe: see `ContrastiveMethod`.

    Source: Goyal et al. 2023, "Finetune like you pretrain" (arXiv 2212.00638), and its released
    code, which is followed. There WiSE-FT interpolates both towers and makes the head from the
    text tower between them; here it interpolates the head itself.
    """

    def __init__(
        self, classifier: Classifier, skip_same_class: bool = False, **recipe: Unpack[Recipe]
    ) -> None:
        super().__init__(classifier, **recipe)
        self.skip_same_class = skip_same_class

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`; "task" is the contrastive loss."""
        seen = self.embed(images, self.by_class.of(labels, self.by_class.drawn(labels)))
        same = None
        if self.skip_same_class:
            same = same_class(labels).fill_diagonal_(False)
        with torch.autocast(images.device.type, enabled=False):
            return {"task": self.contrast(seen, same)}
