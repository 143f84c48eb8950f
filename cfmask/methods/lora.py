"""Fine-tuning of low-rank changes of frozen weights, folded into them."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import cached, register_parametrization
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError, at_least
from cfmask.methods.adapters import checkpointed, loaded
from cfmask.methods.averages import need_whole_weights
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.rates import of_upper
from cfmask.methods.recipe import Recipe

PLACE, ORIGINAL = ".parametrizations.", ".original"


class LowRank(nn.Module):
    """The change W -> W + scale · U D of a weight, zero at first.

    Args:
        weight: float (O, ...); it is changed as a matrix of O rows.
        rank: columns of U and rows of D.
        scale: of the change.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.scale = scale
        self.down = nn.Parameter(rows.new_empty(rank, rows.shape[1]))
        self.up = nn.Parameter(rows.new_zeros(len(rows), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, changed; of the same shape."""
        return weight + (self.scale * self.up @ self.down).view_as(weight)


class LoRA(FineTuning):
    """Cross-entropy on clean images; changes of low rank are trained, and the head.

    Each weight W of a linear layer, of a convolution of one group and of the projections of
    attention becomes W + alpha / rank · U D, with U zero at first. Evaluation and files have the
    change folded into the weights: an ordinary classifier.

    Args:
        classifier: see `Method`. Changed in place: `plain` gives an ordinary one.
        rank: of a change, at least 1.
        alpha: its scale times the rank, above 0.
        **recipe: see `Method`.

    Raises:
        InputError: numbers outside of these, or an encoder without such weights.

    Source: Hu et al. 2021 (arXiv 2106.09685), whose experiments change attention alone. The change
    is added to the weight and not to the layer's output, so that projections of attention that are
    no layers have one as well. The gradient of the weight is computed on the way: a step costs what
    one of plain fine-tuning does, and what is saved is the optimiser's memory.
    """

    def __init__(
        self,
        classifier: Classifier,
        rank: int = 8,
        alpha: float = 16.0,
        **recipe: Unpack[Recipe],
    ) -> None:
        at_least(1, rank, "rank of a change (rank)")
        if not (alpha > 0 and math.isfinite(alpha)):
            raise InputError(f"Expected alpha above 0, but got {alpha}.")
        super().__init__(classifier, **recipe)
        self.rank, self.alpha = rank, alpha
        encoder = classifier.encoder
        self.places = of_upper(_weights(encoder), encoder, self.upper_blocks)
        if not self.places:
            raise InputError(
                "Expected an encoder with linear layers or convolutions of one group for changes "
                f"of low rank, but {classifier.name} has none."
            )
        classifier.encoder.requires_grad_(False)
        for name in self.places:
            place, _, kind = name.rpartition(".")
            layer = classifier.encoder.get_submodule(place)
            change = LowRank(getattr(layer, kind), rank, alpha / rank)
            register_parametrization(layer, kind, change)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        # Attention asks for its weights several times.
        with cached():
            return super().losses(images, labels)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`."""
        super().on_fit_start()
        need_whole_weights(self.trainer, type(self).__name__)

    def plain(self) -> Classifier:
        """See `Method.plain`."""
        plain = copy.deepcopy(self.classifier)
        for name in self.places:
            place, _, kind = name.rpartition(".")
            _fold(plain.encoder.get_submodule(place), kind)
        return plain

    def tuned(self) -> dict[str, Tensor]:
        """See `Method.tuned`."""
        state = {k: v for k, v in super().tuned().items() if PLACE not in k}
        for name in self.places:
            place, _, kind = name.rpartition(".")
            layer = self.classifier.encoder.get_submodule(place)
            state[f"encoder.{name}"] = getattr(layer, kind).detach()
        return state

    def start_from(self, start: Classifier) -> None:
        """See `Method.start_from`."""
        weights = start.state_dict()
        for name in self.places:
            place, _, kind = name.rpartition(".")
            inside = f"encoder.{place}{PLACE}{kind}{ORIGINAL}"
            weights[inside] = weights.pop(f"encoder.{name}")
        self.classifier.load_state_dict(weights, strict=False)
        self.classifier.head_from = start.head_from

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `Method.state_dict`. The classifier as it will be, and the changes beside it."""
        state = super().state_dict(*args, **kwargs)
        own = [k for k in state if PLACE in k and not k.endswith(ORIGINAL)]
        return checkpointed(state, self.tuned(), own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Method.on_load_checkpoint`. The frozen weights are those of the start."""
        super().on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = loaded(checkpoint["state_dict"])


def _fold(layer: nn.Module, kind: str) -> None:
    """Give a copy of a layer its changed weight as its own.

    torch's `remove_parametrizations` would take the weight from the layer's original as well: both
    have one class, in which it is a property.
    """
    weight = nn.Parameter(getattr(layer, kind).detach())
    del layer.parametrizations
    layer.__class__ = type(layer).__mro__[1]
    layer.register_parameter(kind, weight)


def _weights(encoder: nn.Module) -> list[str]:
    """Names of the weights that are changed."""
    found = []
    for name, layer in encoder.named_modules():
        kinds = []
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            kinds = ["weight"]
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            kinds = ["in_proj_weight"]
        found += [f"{name}.{kind}" if name else kind for kind in kinds]
    return found
