"""StarFT: contrastive fine-tuning that keeps what the pretrained model says of the surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.losses import logit_kl
from cfmask.methods.recipe import Recipe
from cfmask.methods.towers import ContrastiveMethod, Pair, TextPass, same_class
from cfmask.text import Captions, TextTower, Tokenizer, looks_are_free, marks

# Surroundings that a class may be seen in. Those of the source come from a language model.
SURROUNDINGS = (
    "in a forest",
    "in a meadow",
    "in a desert",
    "in the mountains",
    "on a beach",
    "on a street",
    "on a lawn",
    "under water",
    "under a blue sky",
    "in the snow",
    "in the rain",
    "in the fog",
    "at night",
    "at sunset",
    "in a city",
    "in a village",
    "in a kitchen",
    "in a workshop",
    "among people",
    "beside a road",
    "behind a fence",
    "in front of a wall",
    "on a white background",
    "on a dark background",
)


class StarFT(ContrastiveMethod):
    """FLYP's loss, and the divergence from the pretrained model on captions with surroundings.

    Each caption gets a phrase about its surroundings; among the captions of the other classes of
    the batch, tuned and pretrained towers shall find the same ones alike to an image.

    Args:
        classifier: see `ContrastiveMethod`. Frozen copies of both towers are the teacher.
        star_weight: weight of KL(pretrained ‖ tuned) at the start. It falls by the epoch, to zero
            in the last one.
        surroundings: phrases that follow a caption, its full stop left out.
        **recipe: see `ContrastiveMethod`.

    Source: "StarFT" (IJCAI 2025) and its released code (alinlab/StarFT), which is followed: the
    logits of both models are scaled by the pretrained scale; pairs of one class, an image's own
    caption among them, are left out. The phrases are this project's own.
    """

    weight: Tensor

    def __init__(
        self,
        classifier: Classifier,
        star_weight: float = 0.5,
        surroundings: Sequence[str] = SURROUNDINGS,
        **recipe: Unpack[Recipe],
    ) -> None:
        super().__init__(classifier, **recipe)
        self.star_weight = star_weight
        if not surroundings:
            raise InputError("Expected at least one of surroundings for StarFT, but got none.")
        self.teacher = Pair(classifier, self.text)
        # The weight of the epoch, as a tensor: what is compiled takes its values as they come.
        self.register_buffer("weight", torch.tensor(star_weight), persistent=False)
        self.around = Around(self.text, classifier.text_tower()[1], self.by_class, surroundings)

    def on_train_batch_start(self, *args: Any) -> None:
        """The weight of this epoch; of a run that is limited by steps alone, by these.

        A run that goes on within an epoch has no start of it.
        """
        epochs = self.trainer.max_epochs
        done, of = self.current_epoch + 1, epochs or 0
        if of < 1:
            done, of = self.global_step, int(self.trainer.estimated_stepping_batches)
        self.weight.fill_(self.star_weight * (1 - done / of))

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`; "task" is the contrastive loss."""
        templates = self.by_class.drawn(labels)
        seen = self.embed(images, self.by_class.of(labels, templates))
        around = self.around(labels, templates)
        held = self.teacher(images, around)
        text = processes.rows_of_all(self.text(around))
        same = same_class(labels)
        with torch.autocast(images.device.type, enabled=False):
            logits = (held.scale * seen.image @ text.T).masked_fill(same, -1e8)
            star = logit_kl(logits, held.logits.masked_fill(same, -1e8), 1.0)
            return {"task": self.contrast(seen), "star": self.weight * star}

    def passes(self) -> float:
        """See `Method.passes`. The teacher makes one."""
        return super().passes() + 1

    def text_passes(self) -> list[TextPass]:
        """See `TextMethod.text_passes`. Both towers read captions with surroundings."""
        (own,) = super().text_passes()
        return [own, replace(own, length=self.around.longest, passes=own.passes + 1)]


class Around(nn.Module):
    """Captions that go on with a phrase, as tokens.

    They are put together from the tokens of both: a text is cut into words at its blanks.

    Args:
        text: the tower that will read them.
        tokenizer: of that tower.
        captions: what begins them.
        phrases: what ends them, followed by a full stop.

    Attributes:
        longest: most tokens that one of them can have.
    """

    captions: Tensor
    bodies: Tensor
    phrases: Tensor

    def __init__(
        self,
        text: TextTower,
        tokenizer: Tokenizer,
        captions: Captions,
        phrases: Sequence[str],
    ) -> None:
        super().__init__()
        self.end = int(marks(text, tokenizer, "StarFT")[1])
        stop = tokenizer(["."])[0, 1]
        tokens = tokenizer([f"{phrase}." for phrase in phrases])
        self.context = tokens.shape[1]
        # Without the token that begins them, and with one column that no phrase fills.
        tails = F.pad(tokens[:, 1 : int(text.ends(tokens).max())], (0, 1))
        last = captions.ends - 2
        stopped = captions.tokens.gather(2, last.unsqueeze(2)).squeeze(2) == stop
        self.longest = min(self.context, captions.longest + tails.shape[1] - 2)
        self.register_buffer("captions", captions.tokens, persistent=False)
        self.register_buffer("bodies", last + 1 - stopped.long(), persistent=False)
        self.register_buffer("phrases", tails, persistent=False)

    def forward(self, labels: Tensor, templates: Tensor) -> Tensor:
        """Tokens int64 (B, L) of the captions of labels in templates, both int64 (B,).

        Each has a phrase of its own, drawn anew. On a CPU they are as long as the longest of them.
        """
        count = len(self.phrases)
        drawn = processes.own_rows(
            len(labels), lambda rows: torch.randint(count, (rows,), device=labels.device)
        )
        return self.joined(labels, templates, drawn)

    def joined(self, labels: Tensor, templates: Tensor, phrases: Tensor) -> Tensor:
        """The same with given phrases, int64 (B,)."""
        tails, body = self.phrases[phrases], self.bodies[labels, templates].unsqueeze(1)
        heads = F.pad(self.captions[labels, templates].long(), (0, tails.shape[1]))
        place = torch.arange(heads.shape[1], device=labels.device)
        tail = tails.gather(1, (place - body).clamp(0, tails.shape[1] - 1))
        tokens = torch.where(place < body, heads, tail)[:, : self.longest]
        # What is cut at the context length ends there.
        cut = ~(tokens == self.end).any(1)
        tokens[:, -1] = torch.where(cut, self.end, tokens[:, -1])
        if looks_are_free(labels):
            tokens = tokens[:, : int((tokens == self.end).int().argmax(1).max()) + 1]
        return tokens
