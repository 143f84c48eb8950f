"""What is opened as an image, what is refused and why, and how deep pixels become 8 bits."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm.data
from PIL import EpsImagePlugin, Image
from support.pictures import noise
from torch._utils import ExceptionWrapper

from cfmask import InputError, UnreadableImage
from cfmask.data.unreadable import check_file
from cfmask.decoding import DECODERS, decode, extent, read_image, stored_size
from cfmask.images import Preprocess


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(order: str, bits: int, form: int, photometric: int, pixels: bytes, wide: int) -> bytes:
    """A grey TIFF of one row, byte by byte as its specification says."""
    tags = {256: wide, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags |= {279: len(pixels), 339: form}
    first = 8 + len(pixels)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", first)
    # A short value stands in the first two bytes of four.
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    return head + pixels + struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(wide: int, high: int, rows: bytes = b"", bits: int = 8, clear: bytes = b"") -> bytes:
    """A grey PNG, byte by byte."""
    head = struct.pack(">IIBBBBB", wide, high, bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head)] + [chunk(b"tRNS", clear)] * bool(clear)
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey(data: bytes, **options) -> list[int]:
    """First row of what is decoded, which must be grey."""
    pixels = np.asarray(decode(data, "x", **options))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


DEEP = {
    "16 bits": ("<", 16, 1, 1, struct.pack("<4H", 0, 255, 256, 65535), [0, 0, 1, 255]),
    "16 bits, big end first": (
        ">",
        16,
        1,
        1,
        struct.pack(">4H", 0, 255, 256, 65535),
        [0, 0, 1, 255],
    ),
    "16 bits, white is zero": (
        "<",
        16,
        1,
        0,
        struct.pack("<4H", 0, 255, 256, 65535),
        [255, 255, 254, 0],
    ),
    "12 bits": ("<", 12, 1, 1, bytes([0x00, 0x00, 0x10, 0x10, 0x0F, 0xFF]), [0, 1, 16, 255]),
    "floats": ("<", 32, 3, 1, struct.pack("<4f", 0, 0.5, 1 / 255, 1), [0, 128, 1, 255]),
    "floats, big end first": (">", 32, 3, 1, struct.pack(">4f", 0, 0.2, 0.4, 1), [0, 51, 102, 255]),
    "floats, white is zero": (
        "<",
        32,
        3,
        0,
        struct.pack("<4f", 0, 0.2, 0.4, 1),
        [255, 204, 153, 0],
    ),
}


@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", DEEP)
def test_deep_pixels_keep_their_share_of_white(kind, decoder, as_stored):
    *layout, values = DEEP[kind]
    assert grey(tiff(*layout, wide=4), decoder=decoder, as_stored=as_stored) == values


NO_WHITE = {
    "int32": ("<", 32, 2, struct.pack("<2i", 0, 70000)),
    "small int32": ("<", 32, 2, struct.pack("<2i", 0, 255)),
    "int16": ("<", 16, 2, struct.pack("<2h", -1, 300)),
    "uint32": ("<", 32, 1, struct.pack("<2I", 0, 1 << 31)),
    "floats above 1": ("<", 32, 3, struct.pack("<2f", 0, 200)),
    "floats below 0": ("<", 32, 3, struct.pack("<2f", -0.1, 0.5)),
    "an infinite float": ("<", 32, 3, struct.pack("<2f", 0.5, float("inf"))),
    "a float that is no number": ("<", 32, 3, struct.pack("<2f", 0.5, float("nan"))),
}


@pytest.mark.parametrize("kind", NO_WHITE)
def test_pixels_without_an_agreed_white_are_refused(kind):
    order, bits, form, pixels = NO_WHITE[kind]
    with pytest.raises(UnreadableImage, match=r"x\.tif: (it holds|floats)"):
        decode(tiff(order, bits, form, 1, pixels, 2), "x.tif")


def test_a_grey_map_of_16_bits_is_divided_by_256():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 255, 256, 65535)
    assert grey(data) == [0, 1, 255]


def test_the_clear_grey_of_a_16_bit_png_becomes_white_unless_as_stored():
    data = png(2, 1, b"\0" + struct.pack(">2H", 300, 600), 16, struct.pack(">H", 300))
    assert grey(data) == [255, 2]
    assert grey(data, as_stored=True) == [1, 2]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "SGI", "ICO", "PSD"])
def test_only_listed_formats_are_opened_whatever_the_name(tmp_path, kind, decoder, monkeypatch):
    def started(*args):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    file = tmp_path / "x.jpg"
    file.write_bytes(b"8BPS\0\1" if kind == "PSD" else saved(Image.fromarray(noise(8, 8)), kind))
    with pytest.raises(UnreadableImage, match=r"x\.jpg: it is none of JPEG, PNG"):
        read_image(file, decoder)
    assert stored_size(str(file)) is None
    with pytest.raises(UnreadableImage, match="none of JPEG"):
        check_file(str(file))


NO_FILE = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    NO_FILE[kind](tmp_path / "x.jpg")
    with pytest.raises(UnreadableImage, match=r"Cannot read image .*x\.jpg: "):
        read_image(tmp_path / "x.jpg")
    assert stored_size(str(tmp_path / "x.jpg")) is None
    with pytest.raises(UnreadableImage, match=r"x\.jpg"):
        check_file(str(tmp_path / "x.jpg"))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(b"")

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UnreadableImage, match=r"x\.jpg: Permission denied\."):
        read_image(tmp_path / "x.jpg")


def test_a_file_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cfmask.decoding.MOST_BYTES", 99)
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(noise(8, 8)), "PNG"))
    with pytest.raises(UnreadableImage, match=r"x\.png: it has more than 99 bytes"):
        read_image(tmp_path / "x.png")


@pytest.fixture
def nothing_large(monkeypatch):
    """Neither decodes nor resizes anything."""

    def large(*args, **options):
        raise AssertionError("memory was asked for")

    monkeypatch.setattr("cfmask.decoding._decode_jpeg", large)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", large)
    monkeypatch.setattr("cfmask.images._shrunk", large)
    monkeypatch.setattr("torchvision.transforms.v2.functional.resize", large)


LONG = {
    "jpeg of 40,000 x 1": saved(Image.new("L", (40_000, 1)), "JPEG"),
    "jpeg of 1 x 40,000": saved(Image.new("RGB", (1, 40_000)), "JPEG"),
    "png of 150 million x 1": png(150_000_000, 1),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", LONG)
@pytest.mark.usefixtures("nothing_large")
def test_what_resizing_would_blow_up_is_refused_before_it_is_decoded(tmp_path, kind, decoder):
    (tmp_path / "x.jpg").write_bytes(LONG[kind])
    misfit = Preprocess((224, 224)).misfit
    with pytest.raises(UnreadableImage, match=r"x\.jpg: it has .* when resized, above 33,554,432"):
        read_image(tmp_path / "x.jpg", decoder, misfit=misfit)
    with pytest.raises(UnreadableImage, match="when resized"):
        check_file(str(tmp_path / "x.jpg"), misfit)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.usefixtures("nothing_large")
def test_a_picture_that_is_decoded_already_is_not_blown_up_either(decoder):
    with pytest.raises(UnreadableImage, match="40000 x 1 pixels"):
        Preprocess(decoder=decoder)(Image.new("RGB", (40_000, 1)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.usefixtures("nothing_large")
def test_a_picture_of_too_many_pixels_is_refused_whatever_pillow_is_set_to(decoder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImage, match=r"x: it has 20000 x 10000 pixels, above 178,956,970"):
        decode(png(20_000, 10_000), "x", decoder)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_below_the_limit_is_read_without_pillows_warning(form, decoder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr("cfmask.decoding.MOST_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        picture = decode(saved(Image.new("RGB", (10, 8)), form), "x", decoder, border=1)
        assert extent(picture) == (6, 8)
        with pytest.raises(UnreadableImage, match="x: "):
            decode(saved(Image.new("RGB", (11, 10)), form), "x", decoder)


def test_a_panorama_is_no_bomb():
    wide = saved(Image.new("RGB", (6000, 150), (1, 2, 3)), "PNG")
    look = Preprocess((336, 336))
    assert look(decode(wide, "x", misfit=look.misfit)).shape == (3, 336, 336)


class Bug(Exception):
    """A mistake in code, whatever its kind."""


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, TypeError, KeyError, Bug])
@pytest.mark.parametrize(
    "place", ["PIL.Image.Image.convert", "PIL.Image.open", "torchvision.io.decode_jpeg"]
)
def test_a_bug_or_a_lack_of_memory_is_no_broken_image(tmp_path, monkeypatch, place, error):
    kind = "JPEG" if "jpeg" in place else "PNG"
    (tmp_path / "x").write_bytes(saved(Image.fromarray(noise(8, 8)), kind))

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(error):
        read_image(tmp_path / "x", "fast")
    if "jpeg" not in place and error is not Bug:
        monkeypatch.setattr("cfmask.data.unreadable.ENDS", {})
        with pytest.raises(error):
            check_file(str(tmp_path / "x"))


def test_a_border_that_leaves_nothing_is_refused():
    with pytest.raises(UnreadableImage, match="nothing is left"):
        decode(saved(Image.fromarray(noise(4, 9)), "PNG"), "x", border=2)


@pytest.mark.parametrize("name", ["a\nb.jpg", "\x1b[31mred.jpg", os.fsdecode(b"caf\xe9.jpg")])
def test_any_name_makes_one_printable_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / name)
    assert str(caught.value).isprintable()
    assert name not in str(caught.value)
    assert str(caught.value).encode()
    Image.fromarray(noise(8, 8)).save(tmp_path / name, "PNG")
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), noise(8, 8))


def test_an_error_in_a_worker_is_the_same_line(tmp_path):
    file = tmp_path / "a\nb: c.jpg"
    file.write_bytes(b"no picture")
    with pytest.raises(UnreadableImage) as here:
        read_image(file)
    try:
        read_image(file)
    except UnreadableImage:
        # What a loader's process sends to the one that asked for the image.
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UnreadableImage) as there:
        pickle.loads(pickle.dumps(sent)).reraise()
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 224)},
        {"size": (-1, 224)},
        {"size": (224.0, 224)},
        {"size": (float("inf"), 224)},
        {"size": (True, 224)},
        {"size": 224},
        {"size": (224, 224, 3)},
        {"size": (1 << 13, 1 << 13)},
        {"size": (10**400, 1)},
        {"crop_pct": 0},
        {"crop_pct": -0.5},
        {"crop_pct": float("nan")},
        {"crop_pct": float("inf")},
        {"crop_pct": 1e-320},
        {"crop_pct": "0.9"},
        {"interpolation": "nearest"},
        {"decoder": "turbo"},
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused_at_construction(wrong):
    with pytest.raises(InputError) as caught:
        Preprocess(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_crop_beyond_the_picture_has_black_around_it_as_in_timm(decoder):
    image = Image.fromarray(noise(90, 90))
    transform = timm.data.create_transform((3, 46, 46), crop_pct=1.15, normalize=False)
    got = Preprocess((46, 46), 1.15, "bilinear", decoder)(image)
    np.testing.assert_array_equal(got, np.asarray(transform(image)))
