"""Image files: any picture that PIL reads -> uint8 (3, H, W)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cfmask.errors import InputError


@dataclass(frozen=True)
class Preprocess:
    """The transform of training and evaluation: resize the short side, crop the centre.

    Attributes:
        size: (H, W) in pixels of the result.
        crop_pct: the short side is resized to min(H, W) / crop_pct before the crop; 1 for CLIP.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture to uint8 (3, H, W)."""
        from torchvision.transforms.v2 import functional as tv

        mode = tv.InterpolationMode(self.interpolation)
        short = int(min(self.size) / self.crop_pct)
        height, width = self.size
        scale = max(short / min(image.size), height / image.height, width / image.width)
        target = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        crop = tv.center_crop(tv.resize(image, target, mode), [height, width])
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
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"Cannot read image {path}: {error}. Remove or replace it.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values: np.ndarray[Any, Any] = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / (256 if values.max() > 255 else 1)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")
