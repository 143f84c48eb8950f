"""Painting: scores of segments laid over their image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cfmask.missingness.segments import Labels

GREEN, RED, EDGE = (0.1, 0.75, 0.2), (0.85, 0.1, 0.1), (1.0, 1.0, 1.0)
# Of the colour of the segment with the largest score.
OPACITY = 0.7


def painted(
    image: npt.NDArray[Any], labels: Labels, scores: npt.NDArray[Any], top: int
) -> npt.NDArray[np.float64]:
    """The image with what speaks for the class in green, against it in red: float (H, W, 3).

    Args:
        image: float (H, W, 3) in [0, 1].
        labels: its segments, int64 (H, W).
        scores: float (S,); the larger a score, the stronger the colour.
        top: segments that are coloured, those of the largest scores in either direction.
    """
    from skimage.segmentation import find_boundaries

    size = np.abs(scores)
    strength = size / (size.max() + 1e-12)
    strength[np.argsort(-size)[top:]] = 0
    opacity = OPACITY * strength[labels][..., None]
    colours = np.where((scores > 0)[labels][..., None], GREEN, RED)
    made = image * (1 - opacity) + colours * opacity
    shown = np.where(strength > 0, np.arange(len(scores)), -1)[labels]
    edge = 0.4 * find_boundaries(shown, mode="inner")[..., None]
    return np.asarray(made * (1 - edge) + np.array(EDGE) * edge, dtype=np.float64)
