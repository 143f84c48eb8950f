"""Following: methods whose teacher is a moving average of both towers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.averages import move
from cfmask.methods.recipe import Recipe
from cfmask.methods.towers import ContrastiveMethod, Embedded, Pair, TextPass


class FollowedMethod(ContrastiveMethod):
    """Contrastive fine-tuning, held to an average of the weights that it has passed through.

    The average of both towers, with their scale, is kept in checkpoints. The first step is not held
    to it, as in the released codes.

    Args:
        classifier: see `ContrastiveMethod`.
        **recipe: see `ContrastiveMethod`.
    """

    def __init__(self, classifier: Classifier, **recipe: Unpack[Recipe]) -> None:
        super().__init__(classifier, **recipe)
        self.average = Pair(classifier, self.text)
        self._held = True

    @abstractmethod
    def share(self, step: int, steps: int) -> float:
        """Share of the tuned weights in the average after an optimiser step.

        Args:
            step: its number, from 0.
            steps: how many there will be in all.
        """

    def taught(self, images: Tensor, tokens: Tensor) -> Embedded | None:
        """The batch as the average sees it; None in the first step of a run."""
        seen: Embedded | None = self.average(images, tokens) if self._held else None
        return seen

    def cross(self) -> Tensor:
        """Frobenius norm of the product of the projections of image and text tower."""
        image, text = projections(self)
        norm: Tensor = torch.linalg.norm(image @ text.T)
        return norm

    def on_train_start(self) -> None:
        """See `Method.on_train_start`."""
        super().on_train_start()
        self._held = self.global_step > 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `Method.optimizer_step`. Then the average follows."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        share = self.share(step, int(self.trainer.estimated_stepping_batches))
        for old, new in ((self.average.image, self.classifier), (self.average.text, self.text)):
            if share:
                move(old.parameters(), new.parameters(), share)
        self._held = True

    def passes(self) -> float:
        """See `Method.passes`. The average makes one."""
        return super().passes() + 1

    def text_passes(self) -> list[TextPass]:
        """See `TextMethod.text_passes`. The average makes one."""
        return [replace(one, passes=one.passes + 1) for one in super().text_passes()]


def projections(method: ContrastiveMethod) -> tuple[Tensor, Tensor]:
    """What maps the widths of image and text tower to D features: float (width, D) each.

    Raises:
        InputError: a tower that does not end in one.
    """
    encoder: Any = method.classifier.encoder
    image = encoder.attnpool.c_proj.weight.T if hasattr(encoder, "attnpool") else None
    image = getattr(encoder, "proj", None) if image is None else image
    text = method.text.projection
    if not isinstance(image, Tensor) or text is None:
        raise InputError(
            f"Expected towers that end in a projection for {type(method).__name__}, but those of "
            f"{method.classifier.name} do not; use FLYP."
        )
    return image, text
