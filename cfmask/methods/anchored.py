"""What keeps the weights near the starting point by a rule of the step, not by the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.methods.averages import need_whole_weights
from cfmask.methods.base import Method
from cfmask.methods.recipe import Recipe
from cfmask.methods.teacher import frozen_copy


class Anchored(Method):
    """Cross-entropy on clean images; some tensors are drawn to where they started.

    These have no weight decay, which would draw them to zero.

    Args:
        classifier: see `Method`. A copy of it, made now, is the anchor.
        **recipe: see `Method`.
    """

    def __init__(self, classifier: Classifier, **recipe: Unpack[Recipe]) -> None:
        super().__init__(classifier, **recipe)
        self.start = frozen_copy(classifier)

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """Where each trained tensor started that is to stay near there."""
        pairs = zip(self.classifier.parameters(), self.start.parameters())
        return {own: start for own, start in pairs if own.requires_grad}

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        return {"task": self.task_of(images, labels)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `Method.parameter_groups`."""
        anchors, groups = self.anchors(), super().parameter_groups()
        free = [
            {**group, "params": [p for p in group["params"] if p not in anchors]}
            for group in groups
        ]
        held = [
            {**group, "params": [p for p in group["params"] if p in anchors], "weight_decay": 0.0}
            for group in groups
        ]
        return [group for group in held + free if group["params"]]

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`."""
        super().on_fit_start()
        need_whole_weights(self.trainer, type(self).__name__)
