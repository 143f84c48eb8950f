"""Counterfactual images: which patches are replaced (mask), and by what (fill).

Letters: B images, (h, w) patch grid. Images are float (B, 3, H, W) in [0, 1], a patch mask is bool
(B, h, w) with True = replaced. A pixel belongs to the patch that covers it, so h must divide H and
w must divide W.

Thresholds of the paper's runs (arXiv 2303.03052): single fill: random 0.5, object 0.3 (the
headline), context 0.5; multi fill: random 0.5, object 0.6, context 0.3; no fill: random 0.75,
object 0.3, context 0.6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from cfmask.errors import InputError
from cfmask.processes import count, own_rows, rank, rows_of_all

Donors = Literal["device", "all"]

# Colours of `ConstantFill` by name, RGB in [0, 1]; mean is that of CLIP's training images.
COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
    "mean": (0.48145466, 0.4578275, 0.40821073),
}


class PatchMask(ABC):
    """Chooses the patches to replace.

    Attributes:
        needs_relevance: False if the values of the relevance are not read, so that a method need
            not compute it.
        keeps_label: True if what carries the class stays, so that the image keeps its label.
    """

    needs_relevance: bool = True
    keeps_label: bool = False

    @abstractmethod
    def __call__(self, relevance: Tensor) -> Tensor:
        """Mask bool (B, h, w), True = replaced, of relevance float (B, h, w) in [0, 1]."""

    def kept(self, patches: int) -> int | None:
        """Patches of `patches` that every image keeps; None if that differs between images."""
        return None


class RandomMask(PatchMask):
    """Each patch is replaced with the same probability.

    Args:
        probability: in [0, 1); 1 would hide every patch.
        exact: keep exactly int(P · (1 - probability)) of the P patches of every image; then no fill
            can drop the tokens.
    """

    needs_relevance = False

    def __init__(self, probability: float = 0.5, exact: bool = False) -> None:
        self.probability = _below_one("probability", probability)
        self.exact = exact

    def __call__(self, relevance: Tensor) -> Tensor:
        """See `PatchMask`."""
        h, w = relevance.shape[1:]
        noise = own_rows(len(relevance), lambda rows: relevance.new_empty(rows, h, w).uniform_())
        kept = self.kept(h * w)
        if kept is None:
            return noise < self.probability
        rank = noise.flatten(1).argsort(1).argsort(1).view_as(noise)
        return rank >= kept

    def kept(self, patches: int) -> int | None:
        """See `PatchMask.kept`.

        Raises:
            InputError: an exact mask would hide every patch.
        """
        if not self.exact:
            return None
        kept = int(patches * (1 - self.probability))
        if kept == 0:
            raise InputError(
                f"Expected a probability that keeps some of {patches} patches, but "
                f"{self.probability} hides every one; lower it."
            )
        return kept


class ObjectMask(PatchMask):
    """The patches that carry the class are replaced: relevance above the threshold.

    Args:
        threshold: in [0, 1].
    """

    def __init__(self, threshold: float = 0.3) -> None:
        self.threshold = _fraction("threshold", threshold)

    def __call__(self, relevance: Tensor) -> Tensor:
        """See `PatchMask`."""
        return relevance > self.threshold


class ContextMask(PatchMask):
    """All patches but those of `ObjectMask` are replaced: relevance at or below the threshold.

    Args:
        threshold: in [0, 1); 1 would hide every patch.
    """

    keeps_label = True

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = _below_one("threshold", threshold)

    def __call__(self, relevance: Tensor) -> Tensor:
        """See `PatchMask`."""
        return relevance <= self.threshold


class Fill(ABC):
    """Replaces the content of patches.

    Attributes:
        needs_donors: True if patches come from other images, so that a batch needs at least two.
        removes: True if the encoder is to remove the patches, and the image stays as it is.
    """

    needs_donors: bool = False
    removes: bool = False

    @abstractmethod
    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """Images (B, 3, H, W) with the patches of bool (B, h, w) replaced, the rest untouched."""


class _DonorFill(Fill):
    """Every replaced patch comes from the same position of another image."""

    needs_donors = True

    def __init__(self, donors: Donors = "device") -> None:
        self.donors = donors


class SingleFill(_DonorFill):
    """Every replaced patch comes from the same position of one other image.

    No image is its own donor, and every image is the donor of one other.

    Args:
        donors: `device` takes patches from the device's own batch, `all` from the batches of all
            devices, which must have one size.
    """

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """See `Fill`.

        Raises:
            InputError: a batch of one image, which has no other to take from.
        """
        pool, own = _donors(images, self.donors)
        order = torch.randperm(len(pool), device=images.device)
        donors = torch.empty_like(order)
        donors[order] = order.roll(1)
        return torch.where(pixels(replaced, images), pool[donors[own]], images)


class MultiFill(_DonorFill):
    """Every replaced patch comes from the same position of its own random other image.

    Args:
        donors: see `SingleFill`.
    """

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """See `SingleFill`."""
        pool, own = _donors(images, self.donors)
        grid = replaced.shape[1:]
        steps = own_rows(
            len(own), lambda rows: torch.randint(1, len(pool), (rows, *grid), device=own.device)
        )
        donors = (own.view(-1, 1, 1) + steps) % len(pool)
        given = pool.gather(0, pixels(donors, images).expand_as(images))
        return torch.where(pixels(replaced, images), given, images)


class ConstantFill(Fill):
    """Every replaced patch becomes one colour.

    Args:
        colour: `black`, `grey`, `mean` (that of CLIP's training images), or RGB in [0, 1].
    """

    def __init__(
        self, colour: Literal["black", "grey", "mean"] | tuple[float, float, float] = "mean"
    ) -> None:
        self.colour = COLOURS[colour] if isinstance(colour, str) else tuple(colour)
        if len(self.colour) != 3 or not all(0 <= value <= 1 for value in self.colour):
            raise InputError(f"Expected three values in [0, 1] for a colour, but got {colour}.")

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """See `Fill`."""
        # Written on the device itself: a copy from the host would wait.
        colour = torch.stack([images.new_full((1, 1), value) for value in self.colour])
        return torch.where(pixels(replaced, images), colour, images)


class BlurFill(Fill):
    """Every replaced patch comes from the blurred image.

    Args:
        sigma: of the Gaussian, as a share of the image's shorter side, above 0.
    """

    def __init__(self, sigma: float = 0.05) -> None:
        if sigma <= 0:
            raise InputError(f"Expected sigma above 0 for a blur, but got {sigma}.")
        self.sigma = sigma

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """See `Fill`."""
        from torchvision.transforms.v2.functional import gaussian_blur

        shorter = min(images.shape[2:])
        # Three sigmas to each side, at most what reflection at the border allows.
        reach = min(max(1, round(3 * self.sigma * shorter)), shorter - 1)
        blurred = gaussian_blur(images, [2 * reach + 1] * 2, [self.sigma * shorter] * 2)
        return torch.where(pixels(replaced, images), blurred, images)


class ShuffleFill(Fill):
    """The replaced patches of an image are permuted at random.

    Source: the patch shuffle of Qin et al. 2022 (arXiv 2110.07858), of chosen patches only.
    """

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """See `Fill`."""
        _check_grid(images, replaced)
        (h, w), flat = replaced.shape[1:], replaced.flatten(1)
        noise = own_rows(len(flat), lambda rows: torch.rand(rows, h * w, device=images.device))
        # Both orders begin with the replaced patches: by position, and at random.
        rest = torch.arange(1, 1 + h * w, device=images.device, dtype=noise.dtype)
        places = torch.where(flat, 0, rest).argsort(dim=1, stable=True)
        drawn = torch.where(flat, noise, rest).argsort(1)
        source = torch.empty_like(places).scatter_(1, places, drawn)
        # Patches as (B, h, w, 3, H/h, W/w).
        cut = images.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 2, 4, 1, 3, 5)
        image = torch.arange(len(images), device=images.device).view(-1, 1)
        moved = cut.flatten(1, 2)[image, source].view(cut.shape)
        whole: Tensor = moved.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
        return whole


class NoFill(Fill):
    """The patches are removed by the encoder (see `Classifier.features`)."""

    removes = True

    def __call__(self, images: Tensor, replaced: Tensor) -> Tensor:
        """The images as they are."""
        return images


class Counterfactual:
    """A mask and a fill: images and their relevance -> counterfactual images.

    Args:
        mask: chooses the patches.
        fill: replaces or removes them.

    Examples:
        >>> make = cfmask.Counterfactual(cfmask.ObjectMask(0.3), cfmask.SingleFill())
        >>> images, relevance = torch.rand(4, 3, 32, 32), torch.rand(4, 2, 2)
        >>> counterfactual, replaced = make(images, relevance)
        >>> torch.equal(replaced, relevance > 0.3)
        True
    """

    def __init__(self, mask: PatchMask, fill: Fill) -> None:
        self.mask = mask
        self.fill = fill

    def __call__(self, images: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Make one counterfactual of each image.

        Args:
            images: float (B, 3, H, W) in [0, 1].
            relevance: float (B, h, w) in [0, 1].

        Returns:
            Counterfactual images (B, 3, H, W) and the mask bool (B, h, w), True = replaced.

        Raises:
            InputError: a grid that does not divide the image, or a batch of one image.
        """
        replaced = self.mask(relevance)
        return self.fill(images, replaced), replaced


def pixels(patches: Tensor, images: Tensor) -> Tensor:
    """Values of patches (B, h, w) for the pixels they cover: (B, 1, H, W).

    Raises:
        InputError: a grid that does not divide the image.
    """
    _check_grid(images, patches)
    (high, wide), (h, w) = images.shape[2:], patches.shape[1:]
    spread = patches.repeat_interleave(high // h, 1).repeat_interleave(wide // w, 2)
    return spread.unsqueeze(1)


def _donors(images: Tensor, donors: Donors) -> tuple[Tensor, Tensor]:
    """Images that may give patches, and the indices int64 (B,) of the given images among them.

    Device r of W has the images r, r + W, r + 2 W, … of a step on a single device.
    """
    own = torch.arange(len(images), device=images.device)
    if donors == "all" and count() > 1:
        images, own = rows_of_all(images), own * count() + rank()
    check_donors(len(images))
    return images, own


def _check_grid(images: Tensor, grid: Tensor) -> None:
    (high, wide), (h, w) = images.shape[2:], grid.shape[1:]
    if high % h or wide % w:
        raise InputError(
            f"Expected a patch grid that divides images of {high} x {wide} px, but got {h} x {w}; "
            "change the image size or the layer that gives the grid."
        )


def check_donors(number: int) -> None:
    """Raise an InputError for a batch too small to take patches from."""
    if number < 2:
        raise InputError(
            f"Expected at least 2 images in a batch to take patches from, but got {number}; raise "
            "the batch size or drop the last batch."
        )


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"Expected {name} in [0, 1], but got {value}.")
    return value


def _below_one(name: str, value: float) -> float:
    if _fraction(name, value) == 1:
        raise InputError(f"Expected {name} below 1, but got 1, which hides every patch.")
    return value
