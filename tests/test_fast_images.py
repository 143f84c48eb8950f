"""The fast decoder against Pillow's."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.evaluation import ReadsTheLabel, Sees, random_images
from support.pictures import BROKEN, UPRIGHT, flipped, noise
from torchvision import transforms as v1

from cfmask import InputError, evaluate
from cfmask.decoding import decode, read_image
from cfmask.images import Preprocess, RandomCrop
from cfmask.shift import Shift

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@cache
def photo(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def jpeg(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "jpeg", **options)
    return stream.getvalue()


def both(data: bytes, **options) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 3) of a JPEG from the fast decoder, which must read it itself, and Pillow."""
    fast = decode(data, "x", "fast", **options)
    assert isinstance(fast, torch.Tensor)
    return fast.permute(1, 2, 0).numpy(), np.asarray(decode(data, "x", "pil", **options))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [40, 75, 95])
def test_a_jpeg_has_the_same_pixels(quality, subsampling, progressive):
    # An odd size, so that blocks are cut at the border.
    image = photo("coffee").crop((0, 0, 333, 217))
    data = jpeg(image, quality=quality, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(*both(data))


def test_a_grey_jpeg_has_the_same_pixels():
    np.testing.assert_array_equal(*both(jpeg(photo("coffee").convert("L"))))


def test_an_rgb_jpeg_without_colour_transform_has_the_same_pixels():
    np.testing.assert_array_equal(*both(jpeg(photo("coffee"), keep_rgb=True)))


@pytest.mark.parametrize("border", [1, 2, 5])
def test_a_border_is_cropped_alike(border):
    fast, pil = both(jpeg(photo("chelsea")), border=border)
    np.testing.assert_array_equal(fast, pil)
    whole = both(jpeg(photo("chelsea")))[1]
    np.testing.assert_array_equal(pil, whole[border:-border, border:-border])


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_rotated_jpeg_is_upright_unless_it_is_wanted_as_stored(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = jpeg(Image.fromarray(noise(16, 40)), exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, "x", "fast", as_stored=True)), moved(stored))
    upright = UPRIGHT[orientation](stored)
    assert np.array_equal(pixels(decode(data, "x", "fast")), upright)
    assert np.array_equal(np.asarray(decode(data, "x", "pil", as_stored=True)), stored)


def moved(pixels: np.ndarray) -> np.ndarray:
    return np.moveaxis(pixels, -1, 0)


def pixels(picture) -> np.ndarray:
    return np.moveaxis(np.asarray(picture), 0, -1) if torch.is_tensor(picture) else picture


def cmyk() -> bytes:
    return jpeg(Image.frombytes("CMYK", (8, 8), noise(8, 8, 4).tobytes()))


def other(kind: str, image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


OTHERS = {
    "cmyk": cmyk(),
    "png": other("png", Image.fromarray(noise(9, 7))),
    "transparent png": other("png", Image.frombytes("RGBA", (8, 8), noise(8, 8, 4).tobytes())),
    "16-bit png": other("png", Image.fromarray(noise(8, 8, 2).view(np.uint16)[..., 0])),
    "gif": other("gif", Image.fromarray(noise(9, 7)[..., 0])),
    "bmp": other("bmp", Image.fromarray(noise(9, 7))),
    "tiff": other("tiff", Image.fromarray(noise(9, 7))),
}


@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_plain_jpeg_goes_through_pillow(kind, as_stored):
    fast = decode(OTHERS[kind], "x", "fast", as_stored=as_stored)
    assert isinstance(fast, Image.Image)
    pil = decode(OTHERS[kind], "x", "pil", as_stored=as_stored)
    assert np.array_equal(np.asarray(fast), np.asarray(pil))


def test_as_stored_is_what_pillow_converts():
    # Pillow makes white of all 16-bit greys above 255.
    for name, data in ((name, OTHERS[name]) for name in OTHERS if name != "16-bit png"):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(decode(data, name, as_stored=True)), expected)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "some picture.jpg"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(InputError) as caught:
        read_image(path, "fast")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def outcome(data: bytes, decoder: str) -> np.ndarray | None:
    try:
        return pixels(decode(data, "x", decoder))
    except InputError:
        return None


@cache
def small(kind: str) -> bytes:
    """A JPEG of the kind, of some kB."""
    exif = Image.Exif()
    exif[274] = 6
    options = {"rotated": {"exif": exif}, "progressive": {"progressive": True}}
    return jpeg(photo("chelsea").resize((60, 40)), quality=60, **options.get(kind, {}))


def check_damaged(draw) -> None:
    """Both decoders make the same of a damaged file: the same picture, or none."""
    data = bytearray(small(draw.draw(st.sampled_from(["plain", "rotated", "progressive"]))))
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, draw.draw(st.sampled_from([30, 700, len(data) - 1]))))
        data[at] = draw.draw(st.integers(0, 255))
    data = bytes(data[: draw.draw(st.integers(0, len(data) * 2))])
    fast, pil = outcome(data, "fast"), outcome(data, "pil")
    assert (fast is None) == (pil is None)
    if fast is not None:
        assert np.array_equal(fast, pil)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_both_decoders_agree_on_damaged_files(draw):
    check_damaged(draw)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(st.data())
def test_both_decoders_agree_on_many_damaged_files(draw):
    check_damaged(draw)


def test_one_wrong_byte_decodes_alike():
    data = flipped(jpeg(photo("coffee")))
    np.testing.assert_array_equal(*both(data))


def difference(preprocess: Preprocess, image: Image.Image) -> int:
    """Largest difference of a pixel from Pillow's and torchvision's pipeline."""
    exact = replace(preprocess, decoder="pil")(image)
    return int((preprocess(image).int() - exact.int()).abs().max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", PHOTOS)
def test_a_photograph_is_within_one_of_pillow(name, interpolation):
    reference = v1.Compose(
        [
            v1.Resize(224, v1.InterpolationMode(interpolation)),
            v1.CenterCrop(224),
            v1.ToTensor(),
        ]
    )
    for quality in (60, 95):
        data = jpeg(photo(name), quality=quality)
        fast = Preprocess(interpolation=interpolation)(decode(data, name, "fast"))
        expected = reference(Image.open(io.BytesIO(data)))
        assert (fast / 255 - expected).abs().max() <= 1 / 255 + 1e-6


SHAPES = [(375, 500), (500, 333), (300, 700), (700, 300), (80, 620), (620, 80), (97, 101), (20, 31)]


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (64, 128)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_within_one_of_pillow(shape, size):
    image = photo("astronaut").resize(shape[::-1], Image.Resampling.LANCZOS)
    assert difference(Preprocess(size), image) <= 1
    assert difference(Preprocess(size, 0.875, "bilinear"), image) <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_even_noise_is_within_two_of_pillow(shape):
    assert difference(Preprocess((96, 96)), Image.fromarray(noise(*shape))) <= 2


@pytest.mark.parametrize("decoder", ["fast", "pil"])
def test_a_result_is_contiguous(decoder):
    assert Preprocess((32, 32), decoder=decoder)(photo("coffee")).is_contiguous()


@pytest.mark.parametrize("decoder", ["fast", "pil"])
def test_the_decoder_is_no_part_of_a_model(decoder):
    preprocess = Preprocess((8, 16), 0.9, "bilinear", decoder)
    assert preprocess.spec() == {"size": [8, 16], "crop_pct": 0.9, "interpolation": "bilinear"}


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.png"):
        read_image(tmp_path / "none.png", "fast")


@pytest.mark.parametrize("decoder", ["fast", "pil"])
def test_a_random_crop_follows_torch_and_covers_the_share_it_says(decoder):
    # A ramp in each direction tells where the part lies and how large it is.
    ramp = np.add.outer(np.zeros(256), np.arange(256)).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp * 0], -1))
    preprocess = Preprocess((64, 64), decoder=decoder)
    shares, parts = [], []
    for seed in range(40):
        torch.manual_seed(seed)
        part = RandomCrop((0.25, 0.5))(image, preprocess)
        torch.manual_seed(seed)
        assert torch.equal(RandomCrop((0.25, 0.5))(image, preprocess), part)
        assert (part.shape, part.dtype) == ((3, 64, 64), torch.uint8)
        wide, high = (part[c].float().amax() - part[c].float().amin() for c in (0, 1))
        shares.append(float(wide * high) / 255**2)
        parts.append(part)
    assert 0.22 < min(shares) < 0.3 < 0.42 < max(shares) < 0.53
    assert len({tuple(part[:, 0, 0].tolist()) for part in parts}) > 30


def test_a_random_crop_of_the_whole_is_the_preprocessing():
    preprocess = Preprocess((64, 64))
    image = photo("astronaut")
    crop = RandomCrop((1.0, 1.0), (1.0, 1.0))
    assert torch.equal(crop(image, preprocess), preprocess(image))
    flip = RandomCrop((1.0, 1.0), (1.0, 1.0), flip=1.0)
    assert torch.equal(flip(image, preprocess), preprocess(image).flip(-1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.8)},
        {"scale": (0.5, 1.1)},
        {"ratio": (0, 1)},
        {"flip": 1.5},
    ],
)
def test_a_random_crop_of_a_wrong_range_is_refused(wrong):
    with pytest.raises(InputError, match="got"):
        RandomCrop(**wrong)


@pytest.mark.parametrize("decoder", ["fast", "pil"])
def test_an_evaluation_reads_with_the_decoder_that_its_protocol_names(decoder):
    seen = []

    def load(preprocess: Preprocess):
        seen.append(preprocess.decoder)
        return random_images(4)

    report = evaluate({"m": Sees(ReadsTheLabel(False))}, [Shift("x", load)], decoder=decoder)
    assert seen == [decoder]
    assert report.protocol["decoder"].startswith(decoder)
