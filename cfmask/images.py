"""Image files: any picture that PIL reads -> uint8 (3, H, W).

There are two decoders. `pil` is Pillow from first byte to last pixel. `fast` reads JPEG with
torchvision's libjpeg-turbo, at full size and with the same pixels, and resizes bytes as bytes; what
it cannot read as Pillow would (CMYK, rotated by EXIF, other formats) goes through Pillow. Of the
values that result 99.7 % are the same and the rest are 1 of 255 off, but for about one in three
million, which is 2 off.
"""

from __future__ import annotations

import io
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

from cfmask.errors import InputError, UnreadableImage

Decoder = Literal["fast", "pil"]
# An RGB picture, decoded: from Pillow, or uint8 (3, H, W).
Picture: TypeAlias = Image.Image | Tensor

# Number of pixels up to which Pillow opens a picture without a warning.
LARGEST = 89_478_485
# What a report says of the decoder.
DECODERS: dict[Decoder, str] = {
    "fast": "torchvision on bytes, 1/255 from Pillow at the most but for rare values",
    "pil": "Pillow",
}

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
        decoder: key of `DECODERS`.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    decoder: Decoder = "fast"

    def spec(self) -> dict[str, Any]:
        """What belongs to a model, as plain numbers, strings and lists: all but the decoder."""
        spec = {**asdict(self), "size": list(self.size)}
        del spec["decoder"]
        return spec

    def __call__(self, picture: Picture) -> Tensor:
        """RGB picture to uint8 (3, H, W)."""
        from torchvision.transforms.v2 import functional as tv

        mode = tv.InterpolationMode(self.interpolation)
        picture = self.prepared(picture)
        sides = extent(picture)
        target = self._target(*sides)
        if isinstance(picture, Tensor) and _shrinks(sides, target):
            return _centre(_shrunk(picture, target, self.interpolation), *self.size)
        if isinstance(picture, Tensor):
            picture = Image.fromarray(picture.permute(1, 2, 0).numpy())
        return as_bytes(tv.center_crop(tv.resize(picture, target, mode), list(self.size)))

    def prepared(self, picture: Picture) -> Picture:
        """The picture in the kind that the decoder works on: a tensor if it is the fast one."""
        if self.decoder == "fast" and isinstance(picture, Image.Image):
            return _interleaved(picture)
        return picture

    def _target(self, high: int, wide: int) -> list[int]:
        """(H, W) in pixels of the picture resized, before the crop."""
        height, width = self.size
        if height == width:
            # As torchvision has it: the short side, and the long one cut to whole pixels.
            short = int(height / self.crop_pct)
            least = min(high, wide)
            return [int(short * high / least), int(short * wide / least)]
        scale = max(height / high, width / wide) / self.crop_pct
        return [max(height, round(high * scale)), max(width, round(wide * scale))]


class RandomCrop:
    """A random part of the picture, resized to the whole: augmentation of training images.

    The default is that of CLIP's own training and of WiSE-FT (arXiv 2109.01903). It draws from
    torch's generator.

    Args:
        scale: range of the share of the picture's area that is kept, in (0, 1].
        ratio: range of the width of the part divided by its height.
        flip: probability of a horizontal flip, in [0, 1].

    Raises:
        InputError: a range or probability that is none.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"Expected a scale from above 0 to at most 1, but got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise InputError(f"Expected a ratio from above 0 and rising, but got {ratio}.")
        if not 0 <= flip <= 1:
            raise InputError(f"Expected a probability to flip in [0, 1], but got {flip}.")
        self.scale = scale
        self.ratio = ratio
        self.flip = flip

    def __call__(self, picture: Picture, preprocess: Preprocess) -> Tensor:
        """RGB picture to uint8 (3, H, W), of the size and interpolation of `preprocess`."""
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(preprocess.interpolation)
        crop = v2.RandomResizedCrop(preprocess.size, self.scale, self.ratio, mode)
        part = crop(preprocess.prepared(picture))
        flipped = bool(torch.rand(()) < self.flip)
        return as_bytes(v2.functional.horizontal_flip(part) if flipped else part)


def read_image(
    path: str | Path, decoder: Decoder = "pil", as_stored: bool = False, border: int = 0
) -> Picture:
    """Decode a picture file to RGB: see `decode`.

    Raises:
        UnreadableImage: the file is no readable image; the path is named.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImage(f"Cannot read image {path}: {error.strerror}. Replace it.") from error
    return decode(data, str(path), decoder, as_stored, border)


def decode(
    data: bytes, name: str, decoder: Decoder = "pil", as_stored: bool = False, border: int = 0
) -> Picture:
    """Decode the bytes of a picture file to RGB.

    Upright, which is the default: grey, palette, CMYK, 16-bit and transparent pictures are
    converted (16 bit: divided by 256; transparency: on white); EXIF rotation is applied.

    Args:
        data: the whole file.
        name: what to call it in an error.
        decoder: "pil" gives a picture of Pillow's; "fast" gives uint8 (3, H, W) where it can.
        as_stored: leave EXIF and transparency alone and convert as Pillow does, as the codes
            behind published results do.
        border: pixels to crop from each side.

    Raises:
        UnreadableImage: no readable image.
    """
    try:
        picture = _decoded(data, decoder == "fast", as_stored)
        return _cropped(picture, border) if border else picture
    # PIL's decoders raise errors of any kind on broken files.
    except Exception as error:
        raise UnreadableImage(
            f"Cannot read image {name}: {error}. Remove or replace it."
        ) from error


def _decoded(data: bytes, fast: bool, as_stored: bool) -> Picture:
    pixels = _decode_jpeg(data) if fast and _is_simple_jpeg(data) else None
    if pixels is not None:
        return pixels
    with Image.open(io.BytesIO(data)) as image:
        turn = None if as_stored else UPRIGHT.get(_orientation(image))
        plain = image.format == "JPEG" and image.mode in ("L", "RGB") and turn is None
        pixels = _decode_jpeg(data) if fast and plain else None
        if pixels is not None:
            return pixels
        upright: Image.Image = image if turn is None else image.transpose(turn)
        return image.convert("RGB") if as_stored else _to_rgb(upright)


def _orientation(image: Image.Image) -> int:
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


def _is_simple_jpeg(data: bytes) -> bool:
    """Whether the first bytes show a grey or colour JPEG of 8 bits without EXIF.

    It spares most files the making of a Pillow picture. What is in doubt is none.
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            bits, high, wide, colours = struct.unpack_from(">BHHB", data, at + 4)
            return bits == 8 and colours in (1, 3) and 0 < high * wide <= LARGEST
        # Segments that may hold EXIF or further pictures are Pillow's to read.
        if marker not in (0xE0, 0xEE, 0xDB, 0xC4, 0xDD, 0xFE):
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _decode_jpeg(data: bytes) -> Tensor | None:
    """Uint8 (3, H, W), channels last in memory, of a grey or RGB JPEG; None leaves it to Pillow."""
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        # A copy, because torch wants memory that it may write to.
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: Tensor = decode_jpeg(raw, mode=ImageReadMode.RGB)
        return pixels
    except RuntimeError:
        return None


def _cropped(picture: Picture, border: int) -> Picture:
    high, wide = extent(picture)
    if isinstance(picture, Tensor):
        return picture[:, border : high - border, border : wide - border]
    return picture.crop((border, border, wide - border, high - border))


def _shrinks(sides: tuple[int, int], target: list[int]) -> bool:
    """Whether torch resizes a picture as Pillow does, to 1 of 255.

    Not if it enlarges, where the rounding of columns and rows adds up; and not if the picture is so
    tall that versions of Pillow from 13 on resize rows before columns, which torch never does.
    """
    (high, wide), (height, width) = sides, target
    return height <= high and width <= wide and high - height <= 2 * (wide - width)


def _shrunk(picture: Tensor, target: list[int], interpolation: str) -> Tensor:
    """What torchvision's resize gives, without what it spends around torch's."""
    # A batch of one that says channels last, which torch reads and writes fastest.
    batch = picture.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return F.interpolate(batch, target, mode=interpolation, antialias=True)[0]


def _centre(picture: Tensor, height: int, width: int) -> Tensor:
    """The crop of torchvision's CenterCrop, contiguous."""
    top, left = ((n - m) / 2 for n, m in zip(extent(picture), (height, width), strict=True))
    top, left = round(top), round(left)
    return picture[:, top : top + height, left : left + width].contiguous()


def extent(picture: Picture) -> tuple[int, int]:
    """(H, W) in pixels."""
    if isinstance(picture, Tensor):
        return picture.shape[1], picture.shape[2]
    return picture.height, picture.width


def as_bytes(picture: Picture) -> Tensor:
    """Uint8 (3, H, W), contiguous."""
    return (_interleaved(picture) if isinstance(picture, Image.Image) else picture).contiguous()


def _interleaved(image: Image.Image) -> Tensor:
    """Uint8 (3, H, W), channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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


def to_unit(images: Tensor) -> Tensor:
    """Images uint8 in [0, 255] as float in [0, 1]; floats pass."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
