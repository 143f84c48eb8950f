"""Shape bias: whether a model answers to the outline of what was hidden.

The object is hidden, then the same mask rolled by half the image, which hides as much elsewhere and
in a shape that says nothing. A model that is right without any pixel of the object answers to the
mask's shape, or to the context. Of images without a label the
answer to the whole counts as right.

Letters: n images of a stretch, N images, H x W pixels.

Source: arXiv 2211.14646, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.missingness.curves import mean, resampled
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import Example
from cfmask.missingness.removal import known_labels, stacked

Array = npt.NDArray[Any]
# Images of a class from which on its figures are told.
LEAST_OF_CLASS = 10


class ShapeBias:
    """Predictions for whole images, without the object, and without as much elsewhere.

    Args:
        model: to be asked, in eval mode.
        hidings: keys of `HIDINGS`.
    """

    def __init__(self, model: Classifier, hidings: Sequence[str]) -> None:
        self.model = model
        self.hidings = hidings

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], first: int) -> dict[str, Tensor]:
        """Labels, and predictions int64 (n,): `clean`, `object/WAY` and `rolled/WAY`.

        Raises:
            InputError: an image of which no pixel of the object is left after its crop.
        """
        images = stacked(examples, self.model)
        masks = [_object(example) for example in examples]
        hidden = torch.stack(masks).to(images.device)
        half = images.shape[2] // 2, images.shape[3] // 2
        clean = self.model(images).argmax(1).cpu()
        found = {"labels": known_labels(examples, clean), "clean": clean}
        for way in self.hidings:
            for name, mask in (("object", hidden), ("rolled", hidden.roll(half, (1, 2)))):
                features = HIDINGS[way](self.model, images, mask)
                found[f"{name}/{way}"] = self.model.classify(features).argmax(1).cpu()
        return found


def _object(example: Example) -> Tensor:
    mask = example.object()
    if mask is None or not mask.any():
        raise InputError(
            f"Expected a mask with an object for {example.name}, but "
            f"{'there is none' if mask is None else 'the crop has none of it'}; leave the image "
            "out, or shape out of --measures."
        )
    return mask


def shape_bias(
    found: Mapping[str, Array], samples: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Accuracy without the object, without as much elsewhere, and their ratio.

    Only images whose whole is answered rightly count. Without any such there is no row.

    Args:
        found: as `ShapeBias` gives it, for all images.
        samples: of the bootstrap.
        names: of the classes.

    Returns:
        A row for each way of hiding: shares in [0, 1] and their ratio, each with both ends of its
        interval; and the same shares for every class of enough images.
    """
    right = found["clean"] == found["labels"]
    labels = found["labels"][right]
    if not len(labels):
        return []
    weights = resampled(len(labels), samples)
    rows = []
    for way in (name.partition("/")[2] for name in found if name.startswith("object/")):
        inside, outside = (
            (found[f"{name}/{way}"][right] == labels).astype(np.float64)
            for name in ("object", "rolled")
        )
        shares = [weights @ part / weights.sum(1) for part in (inside, outside)]
        rows.append(
            {
                "hidden by": way,
                "images": len(labels),
                "object hidden": mean(inside, weights, 1),
                "as much elsewhere": mean(outside, weights, 1),
                "ratio": _ratio(*shares),
                "classes": _by_class(labels, inside, outside, names),
            }
        )
    return rows


def _ratio(inside: Array, outside: Array) -> list[float] | None:
    """Ratio of two shares (1 + R,) with both ends of its interval; None if the second is 0.

    Samples of the data set in which it is 0 have no ratio and are left out.
    """
    if outside[0] == 0:
        return None
    known = outside > 0
    ratio = inside[known] / outside[known]
    return [float(part) for part in (ratio[0], *np.percentile(ratio, [2.5, 97.5]))]


def _by_class(
    labels: Array, inside: Array, outside: Array, names: Sequence[str]
) -> dict[str, list[float]]:
    """Both shares and the number of images of each class that has enough of them."""
    found = {}
    for k in np.unique(labels).tolist():
        own = labels == k
        if own.sum() >= LEAST_OF_CLASS:
            shares = float(inside[own].mean()), float(outside[own].mean())
            found[names[k]] = [*shares, float(own.sum())]
    return found
