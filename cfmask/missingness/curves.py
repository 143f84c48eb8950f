"""Curves: predictions by degree of removal -> accuracy, kept predictions, entropy, similarity.

Letters: N images, T degrees (the first hides nothing), K classes. Pure functions of NumPy in
float64. Source: arXiv 2211.14646, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Inside of the logarithm of the entropy, as in the released code.
TINY = 1e-7


@dataclass(frozen=True)
class Curve:
    """A measure by degree, with its bootstrap interval of 95 %.

    Attributes:
        values: float (T,).
        low: float (T,).
        high: float (T,).
        area: mean over the degrees, with both ends of its interval.
    """

    values: list[float]
    low: list[float]
    high: list[float]
    area: tuple[float, float, float]


def shares(predictions: Array, labels: Array) -> Array:
    """Right answers of each image, float (N, T): 1.0 where the prediction is the label."""
    return np.asarray(predictions == labels[:, None], dtype=np.float64)


def kept(predictions: Array, whole: Array) -> Array:
    """Kept predictions, float (N, T): 1.0 where the answer is that to the whole image."""
    return np.asarray(predictions == whole[:, None], dtype=np.float64)


def similarity(predictions: Array, labels: Array, between: Array) -> Array:
    """Similarity of answer and label, float (N, T).

    Args:
        predictions: int (N, T).
        labels: int (N,).
        between: float (K, K), similarity of two classes in [0, 1].
    """
    return np.asarray(between[predictions, labels[:, None]], dtype=np.float64)


def entropies(predictions: Array, weights: Array) -> Array:
    """Entropy of the predicted classes of the data set, in nats, float (R, T).

    A classifier that answers one class to everything has 0.

    Args:
        predictions: int (N, T).
        weights: float (R, N), how often each image counts in each of R samples of the data set.
    """
    from scipy.sparse import csr_array

    size, found = weights.sum(1, keepdims=True), []
    rows = np.arange(len(predictions))
    for column in predictions.T:
        classes, place = np.unique(column, return_inverse=True)
        table = csr_array((np.ones(len(rows)), (rows, place)), (len(rows), len(classes)))
        q = weights @ table / size
        found.append(-(q * np.log(q + TINY)).sum(1))
    return np.stack(found, axis=1)


def resampled(images: int, samples: int, seed: int = 0) -> Array:
    """Bootstrap weights float (1 + R, N): each image once, then R samples with replacement."""
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), samples)
    return np.concatenate([np.ones((1, images)), draws.astype(np.float64)])


def curve(values: Array, most: float = np.inf, least: float = 0) -> Curve:
    """The curve of a measure.

    Its interval is that of the percentiles, moved so that the mean of the samples lies on the
    value: samples of a data set have fewer classes than it, so that their entropy is too low.

    Args:
        values: float (1 + R, T): of the data set, then of its samples.
        most: that the measure can be.
        least: that it can be.
    """
    areas = values.mean(1)
    (low, high), (first, last) = (_ends(part, most, least) for part in (values, areas))
    area = float(areas[0]), float(first), float(last)
    return Curve(values[0].tolist(), low.tolist(), high.tolist(), area)


def mean(values: Array, weights: Array, most: float = np.inf, least: float = 0) -> list[float]:
    """Mean over images with both ends of its interval, as of `curve`.

    Args:
        values: float (N,), of each image.
        weights: float (1 + R, N), see `resampled`.
        most: that the measure can be.
        least: that it can be.
    """
    return list(curve((weights @ values / weights.sum(1))[:, None], most, least).area)


def _ends(values: Array, most: float, least: float) -> Array:
    """Both ends of the interval, float (2, …), of a value and its samples (1 + R, …)."""
    ends = np.percentile(values[1:], [2.5, 97.5], axis=0)
    return np.asarray(np.clip(ends + values[0] - values[1:].mean(0), least, most))


def measured(
    predictions: Array, labels: Array | None, between: Array | None, samples: int
) -> Mapping[str, Curve]:
    """All curves of a model by one way of hiding.

    Args:
        predictions: int (N, T), the first column of whole images.
        labels: int (N,); None leaves accuracy and similarity out.
        between: see `similarity`; None leaves it out.
        samples: of the bootstrap.
    """
    weights = resampled(len(predictions), samples)
    size = weights.sum(1, keepdims=True)
    each = {"kept": kept(predictions, predictions[:, 0])}
    if labels is not None:
        each = {"accuracy": shares(predictions, labels), **each}
    found = {name: curve(weights @ values / size, 1) for name, values in each.items()}
    found["entropy"] = curve(entropies(predictions, weights))
    if labels is not None and between is not None:
        found["similarity"] = curve(weights @ similarity(predictions, labels, between) / size, 1)
    return found
