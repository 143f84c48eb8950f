"""Fine-tuning of adapters beside a frozen model, folded into its weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.methods.adapters import adapt, checkpointed, follow, loaded, taken_out
from cfmask.methods.averages import need_whole_weights
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.recipe import Recipe


class RAdapter(FineTuning):
    """Cross-entropy on clean images; adapters trained alone, averaged, rescaled and folded.

    The output z of a layer becomes z + s · drop(z F), with F zero at first and s 0.1. Evaluation
    and files have the average of F and s over the steps, s times `rescale`, folded into the
    layer's weights: an ordinary classifier. With `rescale` below 1 it lies between the start and
    what was trained, much as by WiSE-FT. The head stays as it is.

    Args:
        classifier: see `Method`. Changed in place: `plain` gives an ordinary one.
        rank: of F; None for full rank, which the released code has whatever its option says.
        drop: share of the images for which an adapter is left out at a step, in [0, 1).
        rescale: factor of s after training, at least 0.
        decay: of the average, in [0, 1].
        **recipe: see `Method`. For adapters the source has a learning rate of 5e-4 and no weight
            decay.

    Raises:
        InputError: numbers outside of these, or an encoder without layers to adapt.

    Source: Kim et al. 2024 (arXiv 2408.05749), the side of the images. The paper leaves an adapter
    out for a whole call, the released code for token positions of the whole batch, this class for
    images. In place of the contrastive loss with captions there is the task loss over all classes.
    """

    def __init__(
        self,
        classifier: Classifier,
        rank: int | None = None,
        drop: float = 0.2,
        rescale: float = 0.5,
        decay: float = 0.999,
        **recipe: Unpack[Recipe],
    ) -> None:
        if rank is not None and rank < 1:
            raise InputError(f"Expected a rank of at least 1, but got {rank}.")
        if not (0 <= drop < 1 and rescale >= 0 and 0 <= decay <= 1):
            raise InputError(
                "Expected drop in [0, 1), rescale of at least 0 and decay in [0, 1], but got "
                f"{drop}, {rescale} and {decay}."
            )
        super().__init__(classifier, **recipe)
        self.rank, self.drop, self.rescale, self.decay = rank, drop, rescale, decay
        self.adapted, self.cost = adapt(classifier, rank, drop, rescale, self.upper_blocks)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`."""
        super().on_fit_start()
        need_whole_weights(self.trainer, type(self).__name__)

    def passes(self) -> float:
        """See `Method.passes`. Of the frozen weights none has a gradient of its own."""
        return super().passes() - 3 + self.cost

    def plain(self) -> Classifier:
        """See `Method.plain`."""
        return taken_out(self.classifier)

    def tuned(self) -> dict[str, Tensor]:
        """See `Method.tuned`."""
        places = tuple(f"encoder.{name}." for name in self.adapted)
        state = {k: v for k, v in super().tuned().items() if not k.startswith(places)}
        for name, one in self.adapted.items():
            state |= {f"encoder.{name}.{kind}": v for kind, v in one.folded().items()}
        return state

    def start_from(self, start: Classifier) -> None:
        """See `Method.start_from`."""
        weights = start.state_dict()
        for name in self.adapted:
            place = f"encoder.{name}."
            for kind in ("weight", "bias"):
                if place + kind in weights:
                    weights[f"{place}layer.{kind}"] = weights.pop(place + kind)
        self.classifier.load_state_dict(weights, strict=False)
        self.classifier.head_from = start.head_from

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `Method.optimizer_step`. Then the average follows."""
        super().optimizer_step(*args, **kwargs)
        for one in self.adapted.values():
            follow(one, 1 - self.decay)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `Method.state_dict`. The classifier as it will be, and the adapters beside it."""
        state = super().state_dict(*args, **kwargs)
        own = [k for k in state if ".change." in k or ".average." in k]
        return checkpointed(state, self.tuned(), own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Method.on_load_checkpoint`. The frozen weights are those of the start."""
        super().on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = loaded(checkpoint["state_dict"])
