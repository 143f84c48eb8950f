"""Translation: the crop moves by a few pixels in the uncropped picture.

The protocol of "Lost in Translation" (arXiv 2404.07153) as its text describes it: new pixels enter
at one side and others leave at the other; nothing is wrapped around. Letters: B images, m pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.errors import at_least
from cfmask.evaluation.metrics import Metric
from cfmask.views.view import Said, View


class Translation(View):
    """The crop and its eight neighbours, `pixels` away along each side and both diagonals.

    Args:
        pixels: how far the crop moves, at least 1, in pixels of what the model takes.
    """

    def __init__(self, pixels: int = 1) -> None:
        at_least(1, pixels, "pixel by which crops move")
        self.margin = pixels
        moved = f"moved by {pixels} px"
        self.columns = {
            "agreement": Metric(
                f"Same answer to the crop {moved}",
                None,
                "share of the 8 neighbours that get the answer of the crop in the middle",
            ),
            "all_agree": Metric(
                f"Same answer to all crops {moved}",
                None,
                "share of images of which no neighbour changes the answer",
            ),
            "worst_accuracy": Metric(
                f"Accuracy on the worst crop {moved}",
                None,
                "share of images that are right at all 8 neighbours",
            ),
            "feature_change": Metric(
                f"Change of the features of the crop {moved}",
                None,
                "1 − cosine of the features of a neighbour and of the middle, mean of 8",
                unit="",
                scale=1,
                digits=4,
                better=-1,
            ),
        }

    def versions(self, images: Tensor, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The crop in the middle, then its neighbours row by row; see `View`."""
        m = self.margin
        height, width = (side - 2 * m for side in images.shape[-2:])
        yield images[..., m : m + height, m : m + width]
        for dy in (0, m, 2 * m):
            for dx in (0, m, 2 * m):
                if (dy, dx) != (m, m):
                    yield images[..., dy : dy + height, dx : dx + width]

    def measure(self, plain: Said, versions: Sequence[Said]) -> Mapping[str, Tensor]:
        """See `View`."""
        middle, *others = versions
        same = torch.stack([other.predicted == middle.predicted for other in others])
        found = {
            "agreement": same.double().mean(0),
            "all_agree": same.all(0),
            "worst_accuracy": torch.stack([other.correct for other in others]).all(0),
        }
        if middle.features is not None:
            found["feature_change"] = 1 - torch.stack(
                [cosine(middle, other) for other in others]
            ).mean(0)
        return found


def cosine(first: Said, second: Said) -> Tensor:
    """Cosine of the features of two versions, float64 (B,)."""
    assert first.features is not None and second.features is not None
    return F.cosine_similarity(first.features.double(), second.features.double(), dim=1)
