"""CAR-FT: fine-tuning that keeps what the pretrained model reads of the context."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.losses import logit_kl
from cfmask.methods.recipe import Recipe
from cfmask.methods.teacher import frozen_copy
from cfmask.methods.towers import TextMethod, unit


class CARFT(TextMethod):
    """Cross-entropy, and the divergence of what tuned and pretrained model say of the context.

    The context of an image is its distribution over the templates: those of the zero-shot head, as
    text features that are averaged over the classes.

    Args:
        classifier: see `TextMethod`. A frozen copy of it, made now, is the teacher.
        context_weight: weight of KL(pretrained ‖ tuned).
        **recipe: see `Method`. Contexts of mixed images stay those of the clean ones.

    Attributes:
        context: text features float (T, D) of the T templates, times the pretrained scale.

    Source: Mao et al. 2024, "Context-aware robust fine-tuning" (arXiv 2211.16175). No code of the
    authors was found: the features of the templates are those of Lipsum-FT's released code; weight
    1 and the pretrained scale are assumed.
    """

    context: Tensor

    def __init__(
        self, classifier: Classifier, context_weight: float = 1.0, **recipe: Unpack[Recipe]
    ) -> None:
        super().__init__(classifier, **recipe)
        self.context_weight = context_weight
        self.teacher = frozen_copy(classifier)
        text, tokenizer = classifier.text_tower()
        captions = self.captions(text, tokenizer)
        if captions.tokens.shape[1] < 2:
            raise InputError(
                "Expected at least 2 templates for CARFT, whose contexts they are, but got 1; give "
                "more to the classifier."
            )
        # As for the head, thousands of captions take minutes on a CPU.
        device = processes.device()
        context = text.to(device).scale.detach() * captions.to(device).contexts(text)
        # It is made anew from the pretrained weights.
        self.register_buffer("context", context.cpu(), persistent=False)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        features = self.classifier.features(images)
        if self.mixing:
            task = self.task_of(images, labels)
        else:
            task = self.task_loss(self.classifier.classify(features), labels)
        with torch.no_grad():
            target = self.teacher.features(images)
        with torch.autocast(images.device.type, enabled=False):
            own, pretrained = (unit(seen) @ self.context.T for seen in (features, target))
            return {"task": task, "context": self.context_weight * logit_kl(own, pretrained, 1.0)}

    def passes(self) -> float:
        """See `Method.passes`. The teacher makes one; mixed images are another pass."""
        return super().passes() * (2 if self.mixing else 1) + 1
