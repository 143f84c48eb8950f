"""Lipsum-FT: fine-tuning that keeps what the pretrained model says of texts without meaning."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.recipe import Recipe
from cfmask.methods.towers import Pair, TextMethod, unit
from cfmask.text import marks


class LipsumFT(TextMethod):
    """Cross-entropy, and the distance of tuned and pretrained logits for random texts.

    Each step draws texts of random tokens, the same for all images, which the frozen text tower
    reads. The distance is half the mean square over them.

    Args:
        classifier: see `TextMethod`. A frozen copy of it and its text tower are the teacher.
        lipsum_weight: weight of the distance.
        texts: random texts a step, M.
        length: random tokens of a text, without those that begin and end it.
        **recipe: see `Method`. Texts are read with clean images alone. The released code tunes a
            head of unit rows times the scale s of the pretrained model: under AdamW without weight
            decay that is `head_lr` of s · `lr`, 1e-3 for OpenAI's models.

    Attributes:
        marks: the tokens that begin and end a text, int64 (2,).

    Source: Nam et al. 2024, "Lipsum-FT" (ICLR 2024), and its released code, which is followed: the
    head has no bias, the scale is the pretrained one.
    """

    marks: Tensor

    def __init__(
        self,
        classifier: Classifier,
        lipsum_weight: float = 1.0,
        texts: int = 80,
        length: int = 8,
        **recipe: Unpack[Recipe],
    ) -> None:
        super().__init__(classifier, **recipe)
        self.lipsum_weight = lipsum_weight
        self.texts = texts
        self.length = length
        text, tokenizer = classifier.text_tower()
        ends = marks(text, tokenizer, "LipsumFT")
        most = tokenizer([""]).shape[1] - 2
        if texts < 1 or not 1 <= length <= most:
            raise InputError(
                f"Expected at least 1 text of 1 to {most} tokens for LipsumFT, but got {texts} of "
                f"{length}."
            )
        self.teacher = Pair(classifier, text)
        self.register_buffer("marks", ends, persistent=False)
        self.words = int(ends[0])
        classifier.head.bias.requires_grad_(False)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        features = self.classifier.features(images)
        if self.mixing:
            task = self.task_of(images, labels)
        else:
            task = self.task_loss(self.classifier.classify(features), labels)
        texts = self.drawn()
        with torch.no_grad():
            target, read = self.teacher.image.features(images), self.teacher.text(texts)
        with torch.autocast(images.device.type, enabled=False):
            logits, pretrained = (
                self.teacher.text.scale * unit(seen) @ read.T for seen in (features, target)
            )
            distance = (logits - pretrained).square().mean() / 2
        return {"task": task, "lipsum": self.lipsum_weight * distance}

    def drawn(self) -> Tensor:
        """Random texts as tokens int64 (M, length + 2)."""
        words = torch.randint(self.words, (self.texts, self.length), device=self.marks.device)
        begin, end = (mark.expand(self.texts, 1) for mark in self.marks)
        return torch.cat([begin, words, end], 1)

    def passes(self) -> float:
        """See `Method.passes`. The teacher makes one; the texts of a whole step are left out."""
        return super().passes() * (2 if self.mixing else 1) + 1
