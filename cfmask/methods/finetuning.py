"""Plain fine-tuning."""

from __future__ import annotations

from torch import Tensor

from cfmask.methods.base import Method


class FineTuning(Method):
    """Cross-entropy on clean images, all weights trained."""

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        return {"task": self.task_of(images, labels)}
