"""Removal: answers of a model while more and more of an image is hidden.

Letters: n images of a stretch, T degrees, H x W pixels.

Source: arXiv 2211.14646, section 4.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import pixels
from cfmask.errors import unknown
from cfmask.images import to_unit
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import Example
from cfmask.missingness.segments import Cutter, hidden_by_degree, order_of
from cfmask.relevance import Relevance

ORDERS = ("random", "most", "least")
STEPS = 10


def check_names(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Raise an InputError for a name that is none, before anything is computed."""
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


class Removal:
    """Predictions by degree of removal, of every segmentation, order and way of hiding.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
        cutters: by the names of their segmentations.
        orders: among `ORDERS`.
        relevance: what tells relevant segments; None takes the masks of the images.
        seed: of the random order, which is the same for all models and ways of hiding.
    """

    def __init__(
        self,
        model: Classifier,
        hidings: Sequence[str],
        cutters: Mapping[str, Cutter],
        orders: Sequence[str],
        relevance: Relevance | None,
        seed: int,
    ) -> None:
        self.model = model
        self.hidings = hidings
        self.cutters = cutters
        self.orders = orders
        self.relevance = relevance
        self.seed = seed

    def __call__(self, examples: Sequence[Example], first: int) -> dict[str, Tensor]:
        """Predictions int32 (n, T) by `segmentation/order/hiding`, and labels; see `Measure`."""
        images = stacked(examples, self.model)
        with torch.no_grad():
            whole = self.model(images).argmax(1)
        saliency = self._saliency(examples, images, whole)
        found = {"labels": torch.tensor([example.label for example in examples])}
        for kind, cutter in self.cutters.items():
            labels = [cutter(example) for example in examples]
            for order in self.orders:
                hidden = [
                    self._hidden(cut, saliency[k], kind, order, first + k)
                    for k, cut in enumerate(labels)
                ]
                steps = torch.from_numpy(np.stack(hidden, 1)).to(images.device)
                for way in self.hidings:
                    answers = [whole, *(self._answers(images, flags, way) for flags in steps[1:])]
                    found[f"{kind}/{order}/{way}"] = torch.stack(answers, 1).int().cpu()
        return found

    @torch.no_grad()
    def _answers(self, images: Tensor, hidden: Tensor, way: str) -> Tensor:
        return self.model.classify(HIDINGS[way](self.model, images, hidden)).argmax(1)

    def _hidden(
        self,
        labels: npt.NDArray[np.int64],
        saliency: npt.NDArray[np.float64] | None,
        kind: str,
        order: str,
        number: int,
    ) -> npt.NDArray[np.bool_]:
        seed = (self.seed, zlib.crc32(kind.encode()), number)
        return hidden_by_degree(labels, order_of(labels, saliency, order, seed), STEPS)

    def _saliency(
        self, examples: Sequence[Example], images: Tensor, whole: Tensor
    ) -> list[npt.NDArray[np.float64] | None]:
        """What tells relevant pixels of each image, float (H, W); none if only chance orders."""
        if set(self.orders) <= {"random"}:
            return [None] * len(examples)
        if self.relevance is None:
            return [None if e.saliency is None else e.saliency.double().numpy() for e in examples]
        labels = known_labels(examples, whole.cpu()).to(images.device)
        maps = self.relevance.explain(self.model, images, labels)[1].detach()
        return [*pixels(maps, images)[:, 0].double().cpu().numpy()]


def stacked(examples: Sequence[Example], model: Classifier) -> Tensor:
    """Images float (n, 3, H, W) in [0, 1], on the device of the model."""
    device = next(model.parameters()).device
    return to_unit(torch.stack([example.image for example in examples]).to(device))


def known_labels(examples: Sequence[Example], whole: Tensor) -> Tensor:
    """Labels int64 (n,); where nobody knows it, the answer (n,) to the whole image."""
    known = torch.tensor([example.label for example in examples])
    return torch.where(known < 0, whole, known)
