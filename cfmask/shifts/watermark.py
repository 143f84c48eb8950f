"""ImageNet-W: val with the watermark that models take for a carton (Li et al., CVPR 2023)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cfmask.data.folders import Pictures
from cfmask.errors import InputError
from cfmask.images import Preprocess
from cfmask.shift import Size
from cfmask.shifts import imagenet_val
from cfmask.shifts.imagenet_val import of_val
from cfmask.shifts.pictures import Contents, Samples

FONT = "SourceHanSerifSC-ExtraLight.otf"
SOURCE = "https://github.com/facebookresearch/Whac-A-Mole"
TEXT = "捷径捷径捷径"
# The head class that models take the watermark for.
CARTON = 478
# Half transparent white; the text begins at these fractions of width and height.
COLOUR = (255, 255, 255, 128)
PLACE = (0.01, 0.4)
# Font size by the side of the image, as published; for other sides by their ratio.
FONT_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}
SIDE_BY_SIZE = 6.22
CHECKED_SIDE = 224


class Watermarked(Pictures):
    """Pictures with the watermark written on them after resizing and cropping.

    Args:
        samples: path and label of each.
        preprocess: that of the classifier.
        font: path of the font file.
    """

    def __init__(self, samples: Samples, preprocess: Preprocess, font: Path) -> None:
        super().__init__(samples, preprocess)
        height, width = preprocess.size
        self.layer = watermark(width, height, font)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label.

        Raises:
            InputError: the file is no readable image.
        """
        image, label = super().__getitem__(index)
        if tuple(image.shape[1:]) != self.preprocess.size:
            raise InputError(
                "Expected a classifier, whose own resizing and cropping the watermark comes after, "
                "but got a transform; wrap the module as ModuleClassifier."
            )
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("RGBA")
        marked = Image.alpha_composite(picture, self.layer).convert("RGB")
        return torch.from_numpy(np.array(marked)).permute(2, 0, 1), label


def watermark(width: int, height: int, font: Path) -> Image.Image:
    """The watermark for images of a width and height in pixels, RGBA on transparent ground.

    Raises:
        InputError: the font cannot be read.
    """
    size = FONT_SIZES.get(width, int(width / SIDE_BY_SIZE))
    try:
        face = ImageFont.truetype(str(font), size)
    except OSError as error:
        raise InputError(f"Cannot read the font {font}: {error}. Get it from {SOURCE}.") from error
    layer = Image.new("RGBA", (width, height), (255, 255, 255, 0))
    corner = PLACE[0] * width, PLACE[1] * height
    ImageDraw.Draw(layer).text(corner, TEXT, fill=COLOUR, font=face)
    return layer


def imagenet_w(folder: Path, root: Path, only: int | None = None, marked: bool = True) -> Contents:
    """The images of val, or of the class `only`, with the watermark if `marked`.

    Raises:
        InputError: the font of the watermark is not there or cannot be read.
    """
    places = [root / "imagenet-w" / FONT, root / FONT]
    font = next((path for path in places if path.is_file()), None)
    if font is None:
        raise InputError(
            f"Expected the font of the watermark, {places[0]}; get it from {SOURCE} "
            "(imagenet_w/fonts)."
        )
    # An unreadable font is refused now, not in the midst of an evaluation.
    watermark(CHECKED_SIDE, CHECKED_SIDE, font)
    val = imagenet_val.val(folder, root)
    samples = [sample for sample in val.samples if only in (None, sample[1])]
    labels = {name: label for name, label in val.labels.items() if only in (None, label)}
    note = f"with the watermark of {FONT}, written after resizing and cropping; " if marked else ""
    dataset = partial(Watermarked, font=font) if marked else Pictures
    facts: Any = {"labels": labels, "complaint": val.complaint}
    return Contents.of(samples, f"val, {note}{val.note}", dataset, **facts)


_LICENCE = f"images: {imagenet_val.LICENCE}"
IMAGENET_W = {
    "imagenet-w": of_val("ImageNet-W", Size(50_000, 1000), imagenet_w, SOURCE, _LICENCE),
    # Images of one class belong in no mean of shifts.
    "carton": of_val(
        "ImageNet-W, cartons",
        Size(50, 1),
        partial(imagenet_w, only=CARTON),
        SOURCE,
        _LICENCE,
        in_distribution=True,
    ),
    "carton-clean": of_val(
        "ImageNet val, cartons",
        Size(50, 1),
        partial(imagenet_w, only=CARTON, marked=False),
        SOURCE,
        _LICENCE,
        in_distribution=True,
    ),
}
