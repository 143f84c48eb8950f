"""LIME: scores of segments by a linear model of what a classifier answers without some of them.

Letters: n samples, S segments, H x W pixels, B images, (h, w) patch grid.

Source: Ribeiro et al. 2016 (arXiv 1602.04938), as arXiv 2211.14646 has it for images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError, at_least
from cfmask.missingness.curves import curve, resampled
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import Example
from cfmask.missingness.removal import as_array, check_names, known_labels, stacked
from cfmask.missingness.segments import Labels, segment
from cfmask.relevance import Relevance, normalise

Array = npt.NDArray[Any]
# Of the weights of samples by their cosine distance to the whole image, and of the ridge.
WIDTH, ALPHA = 0.25, 1.0
# Images at a time whose activations stay in a processor's cache.
BATCH = 50
MOST_SEGMENTS = 2000
# Segments that are taken for the object, and numbers of them that are hidden.
TOP = 20
ABLATED = tuple(range(0, 51, 5))


def design(segments: int, samples: int, seed: int) -> Array:
    """Which segments each sample shows, float64 (n, S) of 0 and 1; the first shows all.

    Raises:
        InputError: more samples than memory allows.
    """
    at_least(2, samples, "samples of LIME")
    # The table itself, its centred and weighted copies in the regression.
    needed, free = 32 * segments * samples, _free_memory()
    if needed > free:
        raise InputError(
            f"Expected LIME samples that memory allows, but {samples:,} of {segments} segments "
            f"take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; give fewer --samples."
        )
    shown = (np.random.default_rng(seed).random((samples, segments)) >= 0.5).astype(np.float64)
    shown[0] = 1
    return shown


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def sample_weights(shown: Array) -> Array:
    """Weight of each sample, float64 (n,), by its cosine distance to the whole image.

    Args:
        shown: (n, S) of 0 and 1.
    """
    distance = 1 - np.sqrt(shown.mean(1))
    return np.asarray(np.sqrt(np.exp(-(distance**2) / WIDTH**2)))


def fitted_scores(shown: Array, answers: Array) -> Array:
    """Score of each segment, float64 (S,): coefficients of a weighted ridge with intercept.

    Args:
        shown: (n, S) of 0 and 1.
        answers: float (n,), probability of the class.
    """
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha=ALPHA).fit(shown, answers, sample_weight=sample_weights(shown))
    return np.asarray(ridge.coef_, dtype=np.float64)


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
    if way == "refill":
        raise InputError(
            "Expected a way of hiding that needs no other image for LIME; use removed."
        )
    places = torch.from_numpy(labels).to(image.device)
    found = []
    for part in torch.from_numpy(shown == 0).to(image.device).split(BATCH):
        images = image.expand(len(part), *image.shape)
        logits = model.classify(HIDINGS[way](model, images, part[:, places]))
        found.append(logits.double().softmax(1)[:, k].cpu())
    return np.asarray(torch.cat(found).numpy())


def lime_scores(
    model: Classifier,
    image: Tensor,
    labels: Labels,
    way: str,
    k: int,
    samples: int = 512,
    seed: int = 0,
) -> Array:
    """Score of each segment for class `k`, float64 (S,); see `answers_to`.

    Args:
        model: in eval mode.
        image: float (3, H, W) in [0, 1].
        labels: its segments, int64 (H, W).
        way: key of `HIDINGS`.
        k: class of the head.
        samples: answers that the model gives.
        seed: of the samples.
    """
    shown = design(int(labels.max()) + 1, samples, seed)
    return fitted_scores(shown, answers_to(model, image, labels, shown, way, k))


class LimeRelevance(Relevance):
    """LIME's scores as relevance: those of a patch are the mean over its pixels, without negatives.

    It costs `samples` forward passes an image: for `show`, `explain` and saved maps rather than for
    masks in training.

    Args:
        hiding: how segments are hidden, a key of `cfmask.missingness.hiding.HIDINGS`.
        segments: key of `cfmask.missingness.segments.SEGMENTATIONS`.
        samples: answers that the model gives to an image.
        side: of square patches, in pixels.
        seed: of the samples.

    Raises:
        InputError: an unknown name.
    """

    def __init__(
        self,
        hiding: str = "removed",
        segments: str = "patches",
        samples: int = 512,
        side: int = 16,
        seed: int = 0,
    ) -> None:
        check_names([hiding], [segments])
        self.hiding = hiding
        self.segments = segments
        self.samples = samples
        self.side = side
        self.seed = seed
        self.passes = float(samples)

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`."""
        maps = []
        for image, k in zip(images, labels.tolist()):
            pixels = (image.detach().permute(1, 2, 0).double().cpu()).numpy()
            cut = segment(pixels, self.segments, self.side, MOST_SEGMENTS, "an image")
            how = (self.hiding, k, self.samples, self.seed)
            maps.append(torch.from_numpy(lime_scores(classifier, image, cut, *how)[cut]))
        scores = torch.stack(maps).to(images.device, torch.float32).unsqueeze(1)
        patches = F.adaptive_avg_pool2d(scores, classifier.grid)[:, 0].clamp(min=0)
        return classifier(images), normalise(patches)


class LimeQuality:
    """How well LIME's scores fit the mask of the object, and the classifier itself.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
        segmentations: keys of `SEGMENTATIONS`.
        side: of square patches, in pixels.
        samples: answers that the model gives to an image.
        seed: of the samples, which all ways of hiding share.
    """

    def __init__(
        self,
        model: Classifier,
        hidings: Sequence[str],
        segmentations: Sequence[str],
        side: int,
        samples: int,
        seed: int,
    ) -> None:
        check_names(hidings, segmentations)
        self.model = model
        self.hidings = hidings
        self.segmentations = segmentations
        self.side = side
        self.samples = samples
        self.seed = seed

    def __call__(self, examples: Sequence[Example], first: int) -> dict[str, Tensor]:
        """Labels and answers int64 (n,), and float64 (n, 2 + len(ABLATED)) by `SEGMENTS/WAY`.

        The latter are coverage, Jaccard, and 1.0 where the answer is right with so many of the
        highest segments made grey.
        """
        images = stacked(examples, self.model)
        with torch.no_grad():
            whole = self.model(images).argmax(1).cpu()
        labels = known_labels(examples, whole)
        found: dict[str, list[list[float]]] = {}
        for number, (example, image, k) in enumerate(zip(examples, images, whole.tolist())):
            mask = example.object()
            assert mask is not None
            for kind in self.segmentations:
                pixels = as_array(example.image)
                cut = segment(pixels, kind, self.side, MOST_SEGMENTS, example.name)
                for way in self.hidings:
                    how = (way, k, self.samples, self.seed + first + number)
                    scores = lime_scores(self.model, image, cut, *how)
                    fits = [coverage(scores, cut, mask.numpy()), jaccard(scores, cut, mask.numpy())]
                    right = self._ablated(image, cut, scores, int(labels[number]))
                    found.setdefault(f"{kind}/{way}", []).append([*fits, *right])
        rows = {place: torch.tensor(values).double() for place, values in found.items()}
        return {"labels": labels, "clean": whole, **rows}

    @torch.no_grad()
    def _ablated(self, image: Tensor, labels: Labels, scores: Array, k: int) -> list[float]:
        """1.0 where the plain model is right without the highest segments, which become grey."""
        place = torch.from_numpy(np.argsort(np.argsort(-scores))[labels]).to(image.device)
        hidden = torch.stack([place < count for count in ABLATED])
        grey = self.model.mean.expand(1, 3, *image.shape[1:])
        images = torch.where(hidden.unsqueeze(1), grey, image)
        return [float(answer == k) for answer in self.model(images).argmax(1).tolist()]


def coverage(scores: Array, labels: Labels, mask: Array) -> float:
    """Cosine of the scores and of how much more of the object each segment has than the mean.

    Args:
        scores: float (S,).
        labels: int64 (H, W).
        mask: bool (H, W), True on the object.
    """
    share = np.bincount(labels.ravel(), (mask - mask.mean()).ravel(), len(scores))
    return float(scores @ share / (np.linalg.norm(scores) * np.linalg.norm(share) + 1e-8))


def jaccard(scores: Array, labels: Labels, mask: Array, top: int = TOP) -> float:
    """Jaccard index of the object and of the segments with the highest scores."""
    chosen = (np.argsort(np.argsort(-scores)) < top)[labels]
    return float((chosen & mask).sum() / (chosen | mask).sum())


def lime_quality(found: Mapping[str, Array], samples: int) -> list[dict[str, Any]]:
    """Means over the images that are answered rightly; none if there are no such.

    Args:
        found: as `LimeQuality` gives it, for all images.
        samples: of the bootstrap.

    Returns:
        Rows: coverage and Jaccard index with both ends of their intervals, the share of images for
        which this way of hiding has the highest coverage of all, the share answered rightly with
        the 20 highest segments grey, and the mean of that over 0 to 50 segments.
    """
    right = found["clean"] == found["labels"]
    if not right.any():
        return []
    places = [name for name in found if "/" in name]
    weights = resampled(int(right.sum()), samples)
    rows = []
    for place in places:
        kind, way = place.split("/")
        own = found[place][right]
        rivals = np.stack([found[p][right][:, 0] for p in places if p.startswith(f"{kind}/")])
        means = weights @ own / weights.sum(1, keepdims=True)
        rows.append(
            {
                "segments": kind,
                "hidden by": way,
                "images": len(own),
                # Intervals are kept above 0, which cosines need not be.
                "coverage": [value - 1 for value in curve(means[:, :1] + 1).area],
                "Jaccard": list(curve(means[:, 1:2]).area),
                "highest coverage": float((own[:, 0] >= rivals.max(0)).mean()),
                f"right without {TOP}": float(means[0, 2 + ABLATED.index(TOP)]),
                "area": float(means[0, 2:].mean()),
            }
        )
    return rows
