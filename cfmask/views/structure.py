"""Structure: is an image nearer to a mirrored crop of itself than to its own shuffled patches?

Our own test of what an encoder makes of the global layout of an image. It asks the question of the
Disrupted Structure Testbench (arXiv 2506.00718), whose images are not used: the three pictures are
made of the image itself. Letters: B images, g patches a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.errors import InputError
from cfmask.evaluation.metrics import Metric
from cfmask.views.translation import cosine
from cfmask.views.view import Said, View

# Share of each side that the mirrored crop keeps, from the middle.
KEPT = 0.8
GRIDS = range(2, 8)


class Structure(View):
    """Odd one out of an image, its mirrored crop, and itself with g x g patches shuffled.

    Right if the cosine of the features of the image and of the crop is above that of the image and
    of the shuffled one. The crop is the middle 80 % of each side, enlarged to the whole.

    Args:
        most: most patches a side, from 2 to 7; all grids from 2 x 2 on are shown.
    """

    across = "patches a side"

    def __init__(self, most: int = GRIDS[-1]) -> None:
        if most not in GRIDS:
            raise InputError(
                f"Expected from {GRIDS[0]} to {GRIDS[-1]} patches a side for the view structure, "
                f"but got {most}."
            )
        self.grids = self.places = range(GRIDS[0], most + 1)
        self.columns = {f"{g}x{g}": self._metric(g) for g in self.grids}

    @staticmethod
    def _metric(g: int) -> Metric:
        return Metric(
            f"Shuffled copy of {g} x {g} patches is the odd one",
            None,
            "share of images whose features are nearer to those of their mirrored crop than to "
            f"those of their {g} x {g} patches shuffled",
        )

    def versions(self, images: Tensor, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The mirrored crop, then the shuffled ones by rising grid; see `View`."""
        yield mirrored_crop(images)
        for g in self.grids:
            yield shuffled(images, g, numbers)

    def measure(self, plain: Said, versions: Sequence[Said]) -> Mapping[str, Tensor]:
        """See `View`."""
        if plain.features is None:
            return {}
        crop, *others = versions
        near = cosine(plain, crop)
        return {name: near > cosine(plain, other) for name, other in zip(self.columns, others)}


def mirrored_crop(images: Tensor) -> Tensor:
    """The middle of images float (B, 3, H, W), enlarged to the whole by bicubic, left for right."""
    height, width = images.shape[-2:]
    top, left = (round(side * (1 - KEPT) / 2) for side in (height, width))
    middle = images[..., top : height - top, left : width - left]
    size = [height, width]
    return F.interpolate(middle, size, mode="bicubic", antialias=True).clamp(0, 1).flip(-1)


def shuffled(images: Tensor, g: int, numbers: Sequence[int]) -> Tensor:
    """Images (B, 3, H, W) with their g x g patches in another order.

    Patches have ⌊H / g⌋ x ⌊W / g⌋ pixels; where g does not divide a side, what is left over stays
    at the lower and right rim. The order is drawn anew for each image, by its number and g, and is
    never that of the image itself.
    """
    high, wide = (side // g for side in images.shape[-2:])
    if not high or not wide:
        size = f"{images.shape[-1]} x {images.shape[-2]}"
        raise InputError(f"Expected images of at least {g} x {g} pixels, but got {size}.")
    whole = images[..., : g * high, : g * wide]
    patches = whole.unflatten(3, (g, wide)).unflatten(2, (g, high)).movedim(4, 3).flatten(2, 3)
    order = torch.stack([another_order(g, number) for number in numbers]).to(images.device)
    moved = torch.stack([own[:, places] for own, places in zip(patches, order)])
    made = images.clone()
    rows = moved.unflatten(2, (g, g)).movedim(3, 4)
    made[..., : g * high, : g * wide] = rows.flatten(4, 5).flatten(2, 3)
    return made


def another_order(g: int, number: int) -> Tensor:
    """Which patch comes to each place, int64 (g²,): a permutation that is not the identity."""
    rng = torch.Generator().manual_seed(1000 * number + g)
    order = same = torch.arange(g * g)
    while torch.equal(order, same):
        order = torch.randperm(g * g, generator=rng)
    return order
