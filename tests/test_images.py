from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image, features
from support.pictures import BROKEN, UPRIGHT, noise
from torchvision import transforms as v1

from cfmask import InputError
from cfmask.decoding import DECODERS, read_image
from cfmask.images import Preprocess


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The colour (H, W, 3) laid on white paper with opacity alpha (H, W) in [0, 255]."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def as_numpy(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_a_colour_png_comes_back_unchanged(tmp_path):
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(as_numpy(tmp_path / "x.png"), pixels)


def test_a_grey_jpeg_has_three_equal_channels(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(16, 24)[..., 0]).save(path)
    grey = np.asarray(Image.open(path))
    assert grey.ndim == 2
    assert np.array_equal(as_numpy(path), np.stack([grey] * 3, -1))


def test_a_bilevel_png_becomes_black_and_white(tmp_path):
    bits = noise(9, 11)[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "x.png")
    assert np.array_equal(as_numpy(tmp_path / "x.png"), np.stack([bits * 255] * 3, -1))


def palette_picture() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A palette picture of 4 colours, its indices (H, W) and its palette (4, 3)."""
    palette = np.array([[10, 200, 30], [250, 0, 0], [0, 0, 90], [128, 127, 126]], dtype=np.uint8)
    indices = (noise(6, 8)[..., 0] % 4).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.flatten().tolist())
    return image, indices, palette


def test_an_opaque_palette_png_shows_its_palette(tmp_path):
    image, indices, palette = palette_picture()
    image.save(tmp_path / "x.png")
    assert np.array_equal(as_numpy(tmp_path / "x.png"), palette[indices])


def test_the_transparent_colour_of_a_palette_png_becomes_white(tmp_path):
    image, indices, palette = palette_picture()
    image.save(tmp_path / "x.png", transparency=1)
    palette[1] = 255
    assert np.array_equal(as_numpy(tmp_path / "x.png"), palette[indices])


def test_half_transparent_palette_colours_are_laid_on_white(tmp_path):
    image, indices, palette = palette_picture()
    opacity = np.array([255, 128, 0, 64], dtype=np.uint8)
    image.save(tmp_path / "x.png", transparency=bytes(opacity))
    expected = over_white(palette[indices], opacity[indices])
    assert np.abs(as_numpy(tmp_path / "x.png") - expected).max() <= 1


def test_a_cmyk_jpeg_gets_the_colours_of_its_inks(tmp_path):
    inks = np.zeros((32, 32, 4), dtype=np.uint8)
    inks[:16, 16:, 0], inks[16:, :16, 1], inks[16:, 16:, 3] = 255, 200, 100
    path = tmp_path / "x.jpg"
    Image.frombytes("CMYK", (32, 32), inks.tobytes()).save(path, quality=100, subsampling=0)
    assert Image.open(path).mode == "CMYK"
    light = 255 - inks.astype(float)
    expected = light[..., :3] * light[..., 3:] / 255
    assert np.abs(as_numpy(path) - expected).max() <= 4


def test_a_16_bit_png_is_divided_by_256(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (9, 13)).astype(np.uint16)
    values[0, :2] = 0, 65535
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(as_numpy(tmp_path / "x.png")[..., 1], values // 256)


def test_a_dark_16_bit_png_stays_dark(tmp_path):
    values = np.full((4, 4), 255, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode.startswith("I;16")
    assert as_numpy(tmp_path / "x.png").max() == 0


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_transparent_pixels_are_laid_on_white(tmp_path, mode, channels):
    pixels = noise(8, 9, channels)
    pixels[0, 0, -1], pixels[0, 1, -1] = 0, 255
    Image.frombytes(mode, (9, 8), pixels.tobytes()).save(tmp_path / "x.png")
    got = as_numpy(tmp_path / "x.png")
    colour = np.broadcast_to(pixels[..., :-1], got.shape)
    assert np.abs(got - over_white(colour, pixels[..., -1])).max() <= 1
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[0, 1].tolist() == colour[0, 1].tolist()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_rotated_jpeg_comes_upright(tmp_path, orientation):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(noise(16, 40)).save(path, exif=exif)
    stored = np.asarray(Image.open(path))
    assert np.array_equal(as_numpy(path), UPRIGHT[orientation](stored))


def test_a_gif_shows_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (as_numpy(tmp_path / "x.gif") == [255, 0, 0]).all()


@pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")
def test_a_webp_comes_back_unchanged(tmp_path):
    pixels = noise(6, 10)
    Image.fromarray(pixels).save(tmp_path / "x.webp", lossless=True)
    assert np.array_equal(as_numpy(tmp_path / "x.webp"), pixels)


def test_an_odd_exif_entry_does_not_stop_the_reading(tmp_path):
    # An ASCII entry where the standard wants a number, beside orientation 6.
    entries = struct.pack(">HHI4sHHII", 0x0106, 2, 2, b"x", 0x0112, 3, 1, 6 << 16)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(16, 40)).save(path, exif=exif)
    stored = np.asarray(Image.open(path))
    assert np.array_equal(as_numpy(path), np.rot90(stored, -1))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "some picture.jpg"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "side", "crop_pct"),
    [
        (50, 50, 32, 1.0),
        (20, 20, 32, 0.875),
        (96, 64, 32, 1.0),
        (100, 67, 32, 1.0),
        (67, 100, 32, 1.0),
        (71, 103, 32, 0.875),
        (31, 90, 48, 0.9),
        (375, 500, 224, 1.0),
    ],
)
def test_a_square_result_is_that_of_torchvision(height, width, side, crop_pct, interpolation):
    image = Image.fromarray(noise(height, width))
    reference = v1.Compose(
        [
            v1.Resize(int(side / crop_pct), v1.InterpolationMode(interpolation)),
            v1.CenterCrop(side),
            v1.PILToTensor(),
        ]
    )
    got = Preprocess((side, side), crop_pct, interpolation, "pil")(image)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got, reference(image))


@pytest.mark.parametrize(
    ("height", "width", "size", "resized", "left", "top"),
    [
        (50, 100, (32, 64), (64, 32), 0, 0),
        (100, 100, (64, 32), (64, 64), 16, 0),
        (100, 100, (32, 64), (64, 64), 0, 16),
        (40, 160, (32, 64), (128, 32), 32, 0),
    ],
)
def test_a_result_need_not_be_square(height, width, size, resized, left, top):
    image = Image.fromarray(noise(height, width))
    enlarged = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    expected = enlarged[top : top + size[0], left : left + size[1]]
    got = Preprocess(size, decoder="pil")(image)
    assert got.shape == (3, *size)
    assert np.array_equal(got.permute(1, 2, 0), expected)


@pytest.mark.parametrize(("height", "width"), [(50, 100), (100, 100), (160, 40), (37, 211)])
@pytest.mark.parametrize("size", [(32, 64), (64, 32), (64, 64)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_any_result_is_that_of_timm(height, width, size, crop_pct):
    image = Image.fromarray(noise(height, width))
    transform = timm.data.create_transform(
        (3, *size), interpolation="bicubic", crop_pct=crop_pct, normalize=False
    )
    got = Preprocess(size, crop_pct, decoder="pil")(image)
    np.testing.assert_array_equal(got, np.asarray(transform(image)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("decoder", DECODERS)
def test_tiny_pictures_keep_their_colour(width, height, size, crop_pct, decoder):
    got = Preprocess(size, crop_pct, decoder=decoder)(
        Image.new("RGB", (width, height), (10, 200, 90))
    )
    assert got.shape == (3, *size)
    assert got.flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 90]


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="nearst"):
        Preprocess((8, 8), interpolation="nearst")(Image.new("RGB", (9, 9)))
