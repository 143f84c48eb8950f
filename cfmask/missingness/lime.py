"""LIME: scores of segments by a linear model of what a classifier answers without some of them.

Letters: n samples, S segments, H x W pixels, B images, (h, w) patch grid.

Source: Ribeiro et al. 2016 (arXiv 1602.04938), as arXiv 2211.14646 has it for images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError, at_least
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import Example
from cfmask.missingness.removal import check_names
from cfmask.missingness.segments import Labels, cutters
from cfmask.relevance import Relevance, normalise

Array = npt.NDArray[Any]
# Images at a time whose activations stay in a processor's cache.
BATCH = 50
MOST_SEGMENTS = 2000


@dataclass(frozen=True)
class Lime:
    """LIME with its parameters; the defaults are those of arXiv 2211.14646.

    Args:
        samples: answers that the model gives to an image.
        width: of the kernel that weighs samples by their cosine distance to the whole image.
        keep: probability that a sample shows a segment.
        ridge: strength of the regression's penalty.

    Raises:
        InputError: a number that makes no sense.
    """

    samples: int = 512
    width: float = 0.25
    keep: float = 0.5
    ridge: float = 1.0

    def __post_init__(self) -> None:
        at_least(2, self.samples, "samples of LIME")
        if not (self.width > 0 and 0 < self.keep < 1 and self.ridge >= 0):
            raise InputError(
                "Expected a LIME kernel width above 0, a keep probability between 0 and 1, and a "
                f"ridge of at least 0, but got {self.width}, {self.keep} and {self.ridge}."
            )

    def design(self, segments: int, seed: int) -> Array:
        """Which segments each sample shows, float64 (n, S) of 0 and 1; the first shows all.

        Raises:
            InputError: more samples than memory allows.
        """
        # The table itself, its centred and weighted copies in the regression.
        needed, free = 32 * segments * self.samples, _free_memory()
        if needed > free:
            raise InputError(
                f"Expected LIME samples that memory allows, but {self.samples:,} of {segments} "
                f"segments take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; give fewer "
                "with --lime.samples."
            )
        noise = np.random.default_rng(seed).random((self.samples, segments))
        shown = (noise >= 1 - self.keep).astype(np.float64)
        shown[0] = 1
        return shown

    def fit(self, shown: Array, answers: Array) -> Array:
        """Score of each segment, float64 (S,): coefficients of a weighted ridge with intercept.

        Args:
            shown: (n, S) of 0 and 1.
            answers: float (n,), probability of the class.
        """
        from sklearn.linear_model import Ridge

        distance = 1 - np.sqrt(shown.mean(1))
        weights = np.sqrt(np.exp(-(distance**2) / self.width**2))
        ridge = Ridge(alpha=self.ridge).fit(shown, answers, sample_weight=weights)
        return np.asarray(ridge.coef_, dtype=np.float64)

    def scores(
        self, model: Classifier, image: Tensor, labels: Labels, way: str, k: int, seed: int = 0
    ) -> Array:
        """Score of each segment for class `k`, float64 (S,).

        Args:
            model: in eval mode.
            image: float (3, H, W) in [0, 1].
            labels: its segments, int64 (H, W).
            way: key of `HIDINGS`, but for refill, which needs other images.
            k: class of the head.
            seed: of the samples.
        """
        shown = self.design(int(labels.max()) + 1, seed)
        return self.fit(shown, answers_to(model, image, labels, shown, way, k))


PLAIN_LIME = Lime()


def check_hidings(hidings: Sequence[str]) -> None:
    """Raise an InputError for a name that is no way of hiding, or one that needs other images."""
    check_names("way of hiding", hidings, HIDINGS)
    if "refill" in hidings:
        raise InputError(
            "Expected ways of hiding that need no other image for LIME, but got refill; use "
            "removed."
        )


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


@torch.no_grad()
def answers_to(
    model: Classifier, image: Tensor, labels: Labels, shown: Array, way: str, k: int
) -> Array:
    """Probability of class `k`, float64 (n,), for an image of which some segments are hidden.

    Args:
        model: in eval mode.
        image: float (3, H, W) in [0, 1].
        labels: its segments.
        shown: (n, S) of 0 and 1.
        way: key of `HIDINGS`.
        k: class of the head.
    """
    places = torch.from_numpy(labels).to(image.device)
    found = []
    for part in torch.from_numpy(shown == 0).to(image.device).split(BATCH):
        images = image.expand(len(part), *image.shape)
        logits = model.classify(HIDINGS[way](model, images, part[:, places]))
        found.append(logits.double().softmax(1)[:, k].cpu())
    return np.asarray(torch.cat(found).numpy())


class LimeRelevance(Relevance):
    """LIME's scores as relevance: those of a patch are the mean over its pixels, without negatives.

    It costs `samples` forward passes an image: for `show`, `explain` and saved maps rather than for
    masks in training.

    Args:
        hiding: how segments are hidden, a key of `cfmask.missingness.hiding.HIDINGS`.
        segments: patches, slic, quickshift, or the import path of a function; see
            `cfmask.missingness.segments.cutters`.
        samples: see `Lime`, as are `width`, `keep` and `ridge`.
        side: of square patches, in pixels.
        seed: of the samples.

    Raises:
        InputError: an unknown name, or a number that makes no sense.
    """

    def __init__(
        self,
        hiding: str = "removed",
        segments: str = "patches",
        samples: int = 512,
        side: int = 16,
        seed: int = 0,
        width: float = 0.25,
        keep: float = 0.5,
        ridge: float = 1.0,
    ) -> None:
        check_hidings([hiding])
        self.hiding = hiding
        self.segments = segments
        self.lime = Lime(samples, width, keep, ridge)
        self.side = side
        self.seed = seed
        self.passes = float(samples)

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`."""
        found = cutters([self.segments], self.side, MOST_SEGMENTS, classifier.preprocess)
        (cutter,) = found.values()
        maps = []
        for image, k in zip(images, labels.tolist()):
            pixels = (image.detach() * 255).round().byte().cpu()
            cut = cutter(Example("an image", pixels, k, None))
            scores = self.lime.scores(classifier, image, cut, self.hiding, k, self.seed)
            maps.append(torch.from_numpy(scores[cut]))
        whole = torch.stack(maps).to(images.device, torch.float32).unsqueeze(1)
        patches = F.adaptive_avg_pool2d(whole, classifier.grid)[:, 0].clamp(min=0)
        return classifier(images), normalise(patches)
