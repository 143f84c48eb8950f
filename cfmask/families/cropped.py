"""Cropped: a classifier that looks at the crop which the picture itself chooses.

A crop in the middle of what is read changes with every pixel by which the picture moves. One that
is chosen by a score of the picture moves along with it, so that the classifier sees the same pixels
again, unless the best place leaves those that are searched. A remedy of our own design after the
idea of "Lost in Translation" (arXiv 2404.07153), whose code was not at hand.

Letters: B images, (H, W) pixels of the crop, r pixels that it may move to each side.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask.classifier import Classifier, Layout
from cfmask.errors import InputError, at_least
from cfmask.frame import Frame

# Mean over 3 x 3 pixels, and what a pixel differs from its four neighbours.
MEAN = torch.full((3, 3), 1 / 9)
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])


class CropSelection(Classifier):
    """A classifier on the crop with the highest score among (2r + 1)² places.

    Its images have r more pixels on every side; it makes one pass of the classifier's on one crop,
    whose centre is where the picture is most detailed: see `detail`. The weights are shared.

    Args:
        classifier: any.
        reach: r, from 1 to the pixels that the resized picture leaves around the crop.

    Raises:
        InputError: a reach below 1 or beyond the picture.
    """

    encoder: Classifier

    def __init__(self, classifier: Classifier, reach: int) -> None:
        at_least(1, reach, "pixel by which crops are chosen")
        if isinstance(classifier, CropSelection):
            raise InputError("Expected a classifier without crop selection, but it has one.")
        look = Frame.around(classifier.preprocess, reach)
        super().__init__(classifier, nn.Identity(), replace(classifier.spec, preprocess=look))
        self.reach = reach

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """That of the classifier within."""
        assert isinstance(encoder, Classifier)
        return encoder.layout

    def suit(self, device: torch.device) -> None:
        """See `Classifier`."""
        self.encoder.suit(device)

    def features(
        self, images: Tensor, hidden: Tensor | None = None, visible: int | None = None
    ) -> Tensor:
        """Features (B, D) of the chosen crops of images (B, 3, H + 2r, W + 2r)."""
        return self.encoder.features(chosen_crops(images, self.reach), hidden, visible)

    def classify(self, features: Tensor) -> Tensor:
        """See `Classifier`."""
        return self.encoder.classify(features)


def chosen_crops(images: Tensor, reach: int) -> Tensor:
    """The crops (B, 3, H, W) of images (B, 3, H + 2r, W + 2r) whose centres have most detail.

    The centre is the pixel (⌊H / 2⌋, ⌊W / 2⌋) of a crop. Of several best places it is the first,
    row by row.
    """
    height, width = (side - 2 * reach for side in images.shape[-2:])
    if height < 5 or width < 5:
        raise InputError(
            f"Expected images of at least {2 * reach + 5} pixels a side for a reach of {reach}, "
            f"but got {tuple(images.shape)}."
        )
    places = 2 * reach + 1
    top, left = height // 2, width // 2
    # Two pixels around are what the score reads.
    around = images[..., top - 2 : top + places + 2, left - 2 : left + places + 2]
    best = detail(around.float()).flatten(1).argmax(1)
    return torch.stack(
        [
            image[:, y : y + height, x : x + width]
            for image, y, x in zip(images, (best // places).tolist(), (best % places).tolist())
        ]
    )


def detail(images: Tensor) -> Tensor:
    """How much each pixel stands out of what is around it, float (B, H - 4, W - 4).

    The magnitude of the Laplacian of the mean of the channels, smoothed over 3 x 3 pixels. It looks
    at no more than two pixels around each, so that it moves with the picture, and it varies from
    pixel to pixel: the best place of a smoother score lies mostly at the rim of those searched.
    """
    grey = images.mean(1, keepdim=True)
    for kernel in (MEAN, LAPLACE):
        grey = F.conv2d(grey, kernel.to(grey).view(1, 1, 3, 3))
    return grey.abs().squeeze(1)
