"""Fine-tuning with weights that are drawn to where they started."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.anchored import Anchored
from cfmask.methods.recipe import Recipe


class L2SP(Anchored):
    """Cross-entropy on clean images, and encoder weights drawn to where they started.

    After each step with learning rate r they go the share 2 · r · pull of the way back, as
    decoupled weight decay goes to zero. The head is not anchored.

    Args:
        classifier: see `Anchored`.
        pull: the factor of the squared distance, summed over all elements, of which this is the
            gradient step; at least 0. 0.01 is the source's, whose SGD has the distance in its loss;
            beside AdamW as much moves little, and 0.05 pulls as a weight decay of 0.1 does.
        **recipe: see `Method`.

    Source: Li et al. 2018 (arXiv 1802.01483), as the code of arXiv 2202.10054 has it, but
    decoupled. The paper also decays the head by a factor of its own; here it is `weight_decay`.
    """

    def __init__(
        self, classifier: Classifier, pull: float = 0.01, **recipe: Unpack[Recipe]
    ) -> None:
        super().__init__(classifier, **recipe)
        if not pull >= 0:
            raise InputError(f"Expected pull of at least 0, but got {pull}.")
        self.pull = pull

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """See `Anchored.anchors`."""
        head = set(self.classifier.head.parameters())
        return {own: start for own, start in super().anchors().items() if own not in head}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `Method.optimizer_step`. Then the way back."""
        super().optimizer_step(*args, **kwargs)
        anchors = self.anchors()
        with torch.no_grad():
            for group in self.trainer.optimizers[0].param_groups:
                for weight in group["params"]:
                    if weight in anchors:
                        weight.lerp_(anchors[weight], 2 * group["lr"] * self.pull)
