"""LIME's quality: how well its scores fit the object, and the classifier itself.

Letters: n images of a stretch, S segments, H x W pixels.

Source: arXiv 2211.14646, section 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.missingness.curves import curve, mean, resampled
from cfmask.missingness.lime import Array, Lime, check_hidings
from cfmask.missingness.object_masks import Example
from cfmask.missingness.removal import known_labels, stacked
from cfmask.missingness.segments import Cutter, Labels

# Segments that are taken for the object, and numbers of them that are hidden.
TOP = 20
ABLATED = tuple(range(0, 51, 5))


class LimeQuality:
    """How well LIME's scores fit the mask of the object, and the classifier itself.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
        cutters: by the names of their segmentations.
        lime: with its parameters.
        seed: of the samples, which all ways of hiding share.

    Raises:
        InputError: a way of hiding that needs other images.
    """

    def __init__(
        self,
        model: Classifier,
        hidings: Sequence[str],
        cutters: Mapping[str, Cutter],
        lime: Lime,
        seed: int,
    ) -> None:
        check_hidings(hidings)
        self.model = model
        self.hidings = hidings
        self.cutters = cutters
        self.lime = lime
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
            for kind, cutter in self.cutters.items():
                cut = cutter(example)
                for way in self.hidings:
                    how = (way, k, self.seed + first + number)
                    scores = self.lime.scores(self.model, image, cut, *how)
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
        the 20 highest segments grey, and with each number of `ABLATED`, as a curve and its area.
    """
    right = found["clean"] == found["labels"]
    if not right.any():
        return []
    places = [name for name in found if name not in ("labels", "clean")]
    weights = resampled(int(right.sum()), samples)
    rows = []
    for place in places:
        kind, way = place.rsplit("/", 1)
        own = found[place][right]
        rivals = np.stack([found[p][right][:, 0] for p in places if p.startswith(f"{kind}/")])
        means = weights @ own / weights.sum(1, keepdims=True)
        ablation = curve(means[:, 2:], 1)
        rows.append(
            {
                "segments": kind,
                "hidden by": way,
                "images": len(own),
                "coverage": mean(own[:, 0], weights, 1, -1),
                "Jaccard": mean(own[:, 1], weights, 1),
                "highest coverage": float((own[:, 0] >= rivals.max(0)).mean()),
                f"right without {TOP}": float(means[0, 2 + ABLATED.index(TOP)]),
                "area": list(ablation.area),
                "ablation": asdict(ablation),
            }
        )
    return rows
