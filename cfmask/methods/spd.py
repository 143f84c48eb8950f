"""Fine-tuning with steps that are taken back where the gradient leads back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.anchored import Anchored
from cfmask.methods.recipe import Recipe


class SPD(Anchored):
    """Cross-entropy on clean images, with selective projection decay after each step.

    Of every tensor whose gradient has a positive product with its way so far (w - start), the
    share strength · (d' - d) / d' of that way is taken back, where the step has led from distance d
    to the larger distance d'. The head is a tensor like the others.

    Args:
        classifier: see `Anchored`.
        strength: at least 0; of the order 0.1 to 1.
        **recipe: see `Method`. `weight_decay` is not used: all tensors are anchored.

    Source: Tian et al. 2024 (arXiv 2411.01713), as the released AdamSPD has it, where the strength
    goes by the name of weight decay. A tensor that has not left its start is left as it is; the
    released code divides by zero there.
    """

    def __init__(
        self, classifier: Classifier, strength: float = 0.5, **recipe: Unpack[Recipe]
    ) -> None:
        super().__init__(classifier, **recipe)
        if not strength >= 0:
            raise InputError(f"Expected strength of at least 0, but got {strength}.")
        self.strength = strength
        # Distance before a step and whether the gradient leads back, by tensor.
        self._before: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """See `Method.on_before_optimizer_step`. Clipping, which follows, turns no gradient."""
        super().on_before_optimizer_step(optimizer)
        self._before = {}
        for weight, start in self.anchors().items():
            if weight.grad is not None:
                way = weight - start
                self._before[weight] = way.norm(), (weight.grad * way).sum() > 0

    @torch.no_grad()
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `Method.optimizer_step`. Then the projection."""
        super().optimizer_step(*args, **kwargs)
        anchors = self.anchors()
        for weight, (before, leads_back) in self._before.items():
            start = anchors[weight]
            after = (weight - start).norm()
            # Without a way, nothing is taken back.
            share = ((after - before) / after).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
            weight.lerp_(start, self.strength * share * leads_back)
