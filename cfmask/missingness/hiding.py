"""Hiding: images and the pixels to hide -> the features that a model has of what is left.

Letters: B images, H x W pixels, D features.

Every way of hiding takes any classifier and any pixels. Colours, blur and refill change the image;
`removed` changes how the model runs: a CNN by layer masking, a transformer without the tokens of
all patches that hold a hidden pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import BlurFill
from cfmask.errors import InputError
from cfmask.layer_masking import MaskRules, applying

# Classifier, images float (B, 3, H, W) in [0, 1], hidden bool (B, H, W), True = hidden -> features
# (B, D).
Hiding = Callable[[Classifier, Tensor, Tensor], Tensor]

# The mean colour of ImageNet's training images, the grey of arXiv 2211.14646.
GREY = (0.485, 0.456, 0.406)
# Of the edge smoothing of arXiv 2211.14646: a Gaussian of 5 x 5 pixels.
KERNEL, SIGMA = [5, 5], [1.0, 1.0]


def _coloured(images: Tensor, hidden: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return torch.where(hidden.unsqueeze(1), images.new_tensor(colour).view(1, 3, 1, 1), images)


def _average(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels become the mean colour of the whole image."""
    return torch.where(hidden.unsqueeze(1), images.mean((2, 3), keepdim=True), images)


def _smoothed(images: Tensor, hidden: Tensor) -> Tensor:
    """Grey, and blurred inside of the hidden part, so that it has no edge."""
    from torchvision.transforms.v2.functional import gaussian_blur

    grey = _coloured(images, hidden, GREY)
    return torch.where(hidden.unsqueeze(1), gaussian_blur(grey, KERNEL, SIGMA), grey)


def _refilled(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels come from the next image of the batch."""
    if len(images) < 2:
        raise InputError(
            "Expected at least 2 images to refill one from another, but got 1; give more images or "
            "another way of hiding."
        )
    return torch.where(hidden.unsqueeze(1), images.roll(1, 0), images)


def _seen(
    change: Callable[[Tensor, Tensor], Tensor], model: Classifier, images: Tensor, hidden: Tensor
) -> Tensor:
    return model.features(change(images, hidden))


def _removed(model: Classifier, images: Tensor, hidden: Tensor) -> Tensor:
    if model.tokens is None:
        return model.features(images, hidden)
    counts = (~model.hidden_tokens(hidden)).sum(1).unique().tolist()
    return model.features(
        images, hidden, counts[0] - model.tokens.prefix if len(counts) == 1 else None
    )


def _excluded(model: Classifier, images: Tensor, hidden: Tensor) -> Tensor:
    if model.tokens is None:
        raise InputError(
            f"Expected a transformer whose attention leaves keys out, but got the CNN "
            f"{model.name}; use removed, which is layer masking."
        )
    return model.features(images, hidden)


def _by_rules(rules: MaskRules, model: Classifier, images: Tensor, hidden: Tensor) -> Tensor:
    if model.tokens is not None:
        raise InputError(
            f"Expected a CNN for another kind of layer masking, but got the transformer "
            f"{model.name}; use removed, which drops its tokens."
        )
    with applying(rules):
        return model.features(images, hidden)


def _pure(red: float, green: float, blue: float) -> Hiding:
    return partial(_seen, partial(_coloured, colour=(red, green, blue)))


HIDINGS: dict[str, Hiding] = {
    "black": _pure(0, 0, 0),
    "grey": _pure(*GREY),
    "average": partial(_seen, _average),
    "red": _pure(1, 0, 0),
    "green": _pure(0, 1, 0),
    "blue": _pure(0, 0, 1),
    "smoothed": partial(_seen, _smoothed),
    "blur": partial(_seen, BlurFill()),
    "refill": partial(_seen, _refilled),
    "removed": _removed,
    "excluded": _excluded,
    "no_padding": partial(_by_rules, MaskRules(padding="none")),
    "partial_convolution": partial(_by_rules, MaskRules(padding="partial")),
    "released_densenet": partial(_by_rules, MaskRules(join="majority", mean="all")),
    "released_squeezenet": partial(_by_rules, MaskRules(join="union", mean="all", outside="kept")),
    "released_timm_resnet": partial(_by_rules, MaskRules(mean="all")),
}
DEFAULT = ("black", "grey", "removed")
