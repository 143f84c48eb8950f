"""Decoding: the bytes of an image file -> an RGB picture, or one line that says why not.

There are two decoders. `pil` is Pillow from first byte to last pixel. `fast` reads JPEG with
torchvision's libjpeg-turbo, at full size and with the same pixels; what it cannot read as Pillow
would (CMYK, rotated by EXIF, other formats) goes through Pillow.

Opened are the formats in `FORMATS` alone, whatever a file is called: some of Pillow's others start
programs.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from cfmask.errors import InputError, UnreadableImage

Decoder = Literal["fast", "pil"]
# An RGB picture, decoded: from Pillow, or uint8 (3, H, W).
Picture: TypeAlias = Image.Image | Tensor
# (H, W) in pixels, lying or not -> why a picture of that size cannot be used; empty if it can.
Misfit = Callable[[tuple[int, int]], str]

# Formats that are opened, by Pillow's names, and the endings by which folders are searched.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)

# Pixels of an image file at most: where Pillow too refuses.
MOST_PIXELS = 2 * 89_478_485
# Bytes of an image file at most: more than so many pixels of 16 bits need.
MOST_BYTES = 1 << 30
# What a report says of the decoder.
DECODERS: dict[Decoder, str] = {
    "fast": "torchvision on bytes, 1/255 from Pillow at the most but for rare values",
    "pil": "Pillow",
}

# What a report says of how pictures are read, as stored or not; see `decode`.
READING = {
    True: "RGB as stored, without EXIF orientation or transparency",
    False: "RGB upright by EXIF orientation, transparency on white",
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

# What Pillow raises at broken files; RuntimeError is its AVIF reader's.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def read_image(
    path: str | Path,
    decoder: Decoder = "pil",
    as_stored: bool = False,
    border: int = 0,
    misfit: Misfit | None = None,
) -> Picture:
    """Decode an image file to RGB: see `decode`.

    Raises:
        UnreadableImage: the file is no readable image, or no file; the path is named.
    """
    with image_file(path) as file:
        data = file.read(MOST_BYTES + 1)
    return decode(data, str(path), decoder, as_stored, border, misfit)


@contextlib.contextmanager
def image_file(path: str | Path) -> Iterator[BinaryIO]:
    """Context with a file to read from, which is neither a folder nor a pipe nor a device.

    Raises:
        UnreadableImage: there is none, or it cannot be opened or read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _refusal(path, "it is a folder, a pipe or a device")
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise _refusal(path, error.strerror or error) from error


def header(file: BinaryIO, name: str) -> Image.Image:
    """Open an image without decoding it.

    Args:
        file: its bytes.
        name: what to call it in an error.

    Raises:
        UnreadableImage: none of the formats, a broken header, or too many pixels.
    """
    # From half of `MOST_PIXELS` on Pillow warns; a filter that is there already is the user's own.
    if all(kind[2] is not Image.DecompressionBombWarning for kind in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with _broken(name):
        image = Image.open(file, formats=_formats())
    if image.width * image.height > MOST_PIXELS:
        raise _refusal(name, f"it has {image.width} x {image.height} pixels, above {MOST_PIXELS:,}")
    return image


def stored_size(path: str) -> tuple[int, int] | None:
    """(H, W) in pixels of an image file by its header, as it is stored; None if it has none."""
    try:
        with image_file(path) as file, header(file, path) as image:
            return image.height, image.width
    except UnreadableImage:
        return None


def decode(
    data: bytes,
    name: str,
    decoder: Decoder = "pil",
    as_stored: bool = False,
    border: int = 0,
    misfit: Misfit | None = None,
) -> Picture:
    """Decode the bytes of an image file to RGB.

    Upright, which is the default: grey, palette, CMYK and transparent pictures are converted
    (transparency: on white); EXIF rotation is applied. Either way, 16 bits are divided by 256, and
    floats of [0, 1] are multiplied by 255.

    Args:
        data: the whole file.
        name: what to call it in an error.
        decoder: "pil" gives a picture of Pillow's; "fast" gives uint8 (3, H, W) where it can.
        as_stored: leave EXIF and transparency alone and convert as Pillow does, as the codes
            behind published results do.
        border: pixels to crop from each side.
        misfit: why a size cannot be used; asked before anything is decoded.

    Raises:
        UnreadableImage: no readable image, integers of 32 bits, floats outside of [0, 1], or too
            many pixels.
    """
    if len(data) > MOST_BYTES:
        raise _refusal(name, f"it has more than {MOST_BYTES:,} bytes")

    def check(high: int, wide: int) -> None:
        sides = high - 2 * border, wide - 2 * border
        why = "nothing is left inside of its border" if min(sides) < 1 else ""
        why = why or (misfit(sides) if misfit else "")
        if why:
            raise _refusal(name, why)

    picture = _decoded(data, name, decoder == "fast", as_stored, check)
    return _cropped(picture, border) if border else picture


def _refusal(name: object, why: object) -> UnreadableImage:
    return UnreadableImage(f"Cannot read image {name}: {why}. Remove or replace it.")


@contextlib.contextmanager
def _broken(name: str) -> Iterator[None]:
    """What Pillow raises inside at a broken file, as the error of an unreadable image."""
    try:
        yield
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise _refusal(name, f"it is none of {formats}, or begins damaged") from error
    except _BROKEN as error:
        raise _refusal(name, error) from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow has."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _decoded(
    data: bytes, name: str, fast: bool, as_stored: bool, check: Callable[[int, int], None]
) -> Picture:
    sides = _simple_jpeg(data) if fast else None
    if sides is not None:
        check(*sides)
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    with header(io.BytesIO(data), name) as image:
        check(image.height, image.width)
        turn = None if as_stored else _turn(image, name)
        plain = image.format == "JPEG" and image.mode in ("L", "RGB") and turn is None
        pixels = _decode_jpeg(data) if fast and plain else None
        return _rgb(image, name, as_stored, turn) if pixels is None else pixels


def _turn(image: Image.Image, name: str) -> Image.Transpose | None:
    """What brings it upright, by its EXIF orientation."""
    with _broken(name):
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _rgb(
    image: Image.Image, name: str, as_stored: bool, turn: Image.Transpose | None
) -> Image.Image:
    with _broken(name):
        image.load()
    deep = image.mode == "F" or image.mode[:1] == "I"
    shallow = _eight_bits(image, name, as_stored) if deep else image
    upright: Image.Image = shallow if turn is None else shallow.transpose(turn)
    with _broken(name):
        return upright.convert("RGB") if as_stored else _on_white(upright).convert("RGB")


def as_picture(image: object, name: str, misfit: Misfit | None = None) -> Image.Image:
    """An image as any dataset may have it, as an RGB picture, upright.

    Args:
        image: a picture of Pillow's, which may be a file that is not decoded yet; an array uint8
            (H, W) or (H, W, 3); or a tensor (1 or 3, H, W), uint8 or float in [0, 1].
        name: what to call it in an error.
        misfit: why a size cannot be used.

    Raises:
        UnreadableImage: it cannot be decoded, or has a size that does not fit.
        InputError: it is nothing of that.
    """
    picture = image if isinstance(image, Image.Image) else _from_values(image, name)
    if misfit and (why := misfit((picture.height, picture.width))):
        raise _refusal(name, why)
    return _rgb(picture, name, False, _turn(picture, name))


def _from_values(image: object, name: str) -> Image.Image:
    if isinstance(image, Tensor) and image.numel() and image.ndim == 3 and len(image) in (1, 3):
        if image.dtype == torch.uint8:
            return _from_values(image.permute(1, 2, 0).numpy(force=True), name)
        if not image.is_floating_point() or not ((image >= 0) & (image <= 1)).all():
            raise InputError(
                f"Expected image {name} as bytes or floats in [0, 1], but got {image.dtype} from "
                f"{float(image.min()):.3g} to {float(image.max()):.3g}; leave out normalisation, "
                "which the classifier does."
            )
        return _from_values(image.mul(255).round().byte(), name)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        grey = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(grey))
    shape = tuple(getattr(image, "shape", ()))
    raise InputError(
        f"Expected image {name} as a picture of Pillow's, an array uint8 (H, W, 3) or a tensor "
        f"(3, H, W), but got {type(image).__name__}{f' {shape}' if shape else ''}."
    )


def _simple_jpeg(data: bytes) -> tuple[int, int] | None:
    """(H, W) if the first bytes show a grey or colour JPEG of 8 bits without EXIF.

    It saves opening most files with Pillow. What is in doubt counts as another kind.
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            bits, high, wide, colours = struct.unpack_from(">BHHB", data, at + 4)
            simple = bits == 8 and colours in (1, 3) and 0 < high * wide <= MOST_PIXELS
            return (high, wide) if simple else None
        # Segments that may hold EXIF or further pictures are Pillow's to read.
        if marker not in (0xE0, 0xEE, 0xDB, 0xC4, 0xDD, 0xFE):
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _decode_jpeg(data: bytes) -> Tensor | None:
    """Uint8 (3, H, W), channels last in memory, of a grey or RGB JPEG; None leaves it to Pillow."""
    from torchvision.io import ImageReadMode, decode_jpeg

    # A copy, because torch wants memory that it may write to.
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels: Tensor = decode_jpeg(raw, mode=ImageReadMode.RGB)
        return pixels
    # Torch has no other error for broken files.
    except RuntimeError:
        return None


def _cropped(picture: Picture, border: int) -> Picture:
    high, wide = extent(picture)
    if isinstance(picture, Tensor):
        return picture[:, border : high - border, border : wide - border]
    return picture.crop((border, border, wide - border, high - border))


def extent(picture: Picture) -> tuple[int, int]:
    """(H, W) in pixels."""
    if isinstance(picture, Tensor):
        return picture.shape[1], picture.shape[2]
    return picture.height, picture.width


def _eight_bits(image: Image.Image, name: str, as_stored: bool) -> Image.Image:
    """A grey picture of 12 or 16 bits, or of floats in [0, 1], as one of 8 bits."""
    values: np.ndarray[Any, Any] = np.asarray(image)
    tags = dict(getattr(image, "tag_v2", {}))
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise _refusal(
                name, "floats are read from 0, black, to 1, white, and it holds others; scale them"
            )
        grey = np.rint(values * 255).astype(np.uint8)
    elif image.mode == "I" and image.format == "TIFF":
        raise _refusal(
            name, "it holds signed or 32-bit integers, which have no agreed white; save it as 8 bit"
        )
    else:
        bits: int = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    clear = None if as_stored else image.info.get("transparency")
    return Image.fromarray(grey if clear is None else np.where(values == clear, 255, grey))


def _on_white(image: Image.Image) -> Image.Image:
    """A picture without transparency."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image)
    return image
