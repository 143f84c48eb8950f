"""Image files: any picture that PIL reads -> uint8 (3, H, W)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from cfmask.errors import InputError

# How a picture with this EXIF orientation is turned upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocess:
    """The transform of training and evaluation: resize the short side, crop the centre.

    Attributes:
        size: (H, W) in pixels of the result.
        crop_pct: share of the resized picture's short side that the crop keeps; 1 for CLIP.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def spec(self) -> dict[str, Any]:
        """The attributes as plain numbers, strings and lists."""
        return {**asdict(self), "size": list(self.size)}

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture to uint8 (3, H, W)."""
        from torchvision.transforms.v2 import functional as tv

        height, width = self.size
        target = [int(height / self.crop_pct)]
        if height != width:
            scale = max(height / image.height, width / image.width) / self.crop_pct
            sides = (height, image.height), (width, image.width)
            target = [max(least, round(side * scale)) for least, side in sides]
        resized = tv.resize(image, target, tv.InterpolationMode(self.interpolation))
        crop = tv.center_crop(resized, [height, width])
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def read_image(path: str | Path) -> Image.Image:
    """Decode a picture to RGB, upright.

    Grey, palette, CMYK, 16-bit and transparent pictures are converted (16 bit: divided by 256;
    transparency: on white); EXIF rotation is applied.

    Raises:
        InputError: the file is no readable image; the path is named.
    """
    try:
        with Image.open(path) as image:
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return _to_rgb(image if turn is None else image.transpose(turn))
    # PIL's decoders raise errors of any kind on broken files.
    except Exception as error:
        raise InputError(f"Cannot read image {path}: {error}. Remove or replace it.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values: np.ndarray[Any, Any] = np.asarray(image, dtype=np.float32)
        deep = image.mode.startswith("I;16") or values.max() > 255
        image = Image.fromarray((values / (256 if deep else 1)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")
