"""ImageNet-C: 15 corruptions at 5 severities, stored or made from val (Hendrycks & Dietterich).

The stored images are 224 x 224 pixels and evaluated as they are. Those made here come from
`imagecorruptions`, whose elastic transform, frost and snow differ from the published set's: the
two are not comparable.
"""

from __future__ import annotations

import inspect
import io
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfmask.data.folders import Pictures
from cfmask.decoding import read_image, stored_size
from cfmask.errors import InputError
from cfmask.images import Preprocess
from cfmask.shift import Size
from cfmask.shifts import imagenet_val
from cfmask.shifts.combinations import ALEXNET_ERRORS, SEVERITIES
from cfmask.shifts.imagenet import by_wordnet_id
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import AsStored, Contents, Samples

SIDE = 224
# The published corruptions that are not in mCE.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# How the published images were resized and cropped from val before they were corrupted.
CUT = Preprocess((SIDE, SIDE), 224 / 256, "bilinear", "pil")
JPEG_QUALITY = 85
# These two draw from their own generators, which take a seed.
_TAKE_A_SEED = ("impulse_noise", "glass_blur")


class Corrupted(Pictures):
    """Pictures that are corrupted when they are read, each the same every time.

    As for the published set: cropped to 224 pixels, corrupted, saved as JPEG of quality 85.

    Args:
        samples: path and label of each.
        preprocess: that of the classifier, which must take 224 pixels.
        corruption: its name.
        severity: 1 to 5.
    """

    def __init__(
        self, samples: Samples, preprocess: Preprocess, corruption: str, severity: int
    ) -> None:
        super().__init__(samples, preprocess)
        if preprocess.size != CUT.size:
            raise InputError(
                f"Expected a classifier of {SIDE} x {SIDE} pixels, at which ImageNet-C is made, "
                f"but got one of {preprocess.size[1]} x {preprocess.size[0]}; leave ImageNet-C out."
            )
        self.corruption = corruption
        self.severity = severity
        self.corrupt = corrupt_function()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, 224, 224) and its label.

        Raises:
            UnreadableImage: the file is no readable image.
        """
        path, label = self.samples[index]
        whole = read_image(path, "pil", as_stored=True, misfit=CUT.misfit)
        clean = CUT(whole).permute(1, 2, 0).numpy()
        # Seeded by the file: order and processes make no difference.
        seed = zlib.crc32(f"{self.corruption}/{self.severity}/{Path(path).name}".encode())
        own = {"seed": seed} if self.corruption in _TAKE_A_SEED else {}
        with _numpy_seed(seed):
            pixels = self.corrupt(clean, self.severity, self.corruption, **own)
        return _compressed(pixels), label


def corrupt_function() -> Callable[..., np.ndarray[Any, Any]]:
    """`corrupt` of imagecorruptions: pixels uint8 (H, W, 3), severity, name -> pixels.

    Raises:
        InputError: the package is not installed, or is the unmaintained one, which fails with
            today's NumPy and scikit-image.
    """
    try:
        corrupt = import_module("imagecorruptions").corrupt
    except ImportError as error:
        raise _no_corruptions(str(error)) from error
    if "kwargs" not in inspect.signature(corrupt).parameters:
        raise _no_corruptions("the old package imagecorruptions is installed instead")
    function: Callable[..., np.ndarray[Any, Any]] = corrupt
    return function


def _no_corruptions(why: str) -> InputError:
    return InputError(
        f"Expected the package imagecorruptions-imaug, which makes corruptions, but {why}; "
        "pip install 'cfmask[corruptions]', and pip uninstall imagecorruptions first."
    )


@contextmanager
def _numpy_seed(seed: int) -> Any:
    """Context in which NumPy's global generator, from which corruptions draw, is seeded."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _compressed(pixels: np.ndarray[Any, Any]) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    with Image.open(file, formats=["JPEG"]) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def stored(folder: Path, root: Path) -> Contents:
    """One corruption at one severity, in folders by WordNet id.

    Raises:
        InputError: the first image is not of 224 pixels.
    """
    found = by_wordnet_id(folder, root)
    for path, _ in found.samples[:1]:
        size = stored_size(path) or CUT.size
        if size != CUT.size:
            raise InputError(
                f"Expected images of {SIDE} x {SIDE} pixels, as ImageNet-C is published, but got "
                f"{path} of {size[1]} x {size[0]}; get the published images."
            )
    note = "label = WordNet id of the folder; as stored at 224 pixels, neither resized nor cropped"
    return replace(found, load=partial(AsStored, found.samples), note=note)


def made(folder: Path, root: Path, corruption: str, severity: int) -> Contents:
    """The images of val, corrupted as they are read.

    Raises:
        InputError: the package that corrupts is not installed.
    """
    corrupt_function()
    val = _val(folder, root)
    return replace(
        val,
        load=partial(Corrupted, val.samples, corruption=corruption, severity=severity),
        note="MADE HERE from val, not the published images: resized to 256, cropped to 224, "
        "corrupted by imagecorruptions-imaug with a seed for each file, JPEG quality 85",
    )


# Val, listed once for all corruptions.
_val = lru_cache(maxsize=1)(imagenet_val.val)


# The five archives unpack into folders of corruptions; some keep a folder for each archive.
_PLACES = [
    f"{home}/{archive}"
    for home in ("imagenet-c", "ImageNet-C", "imagenet_c")
    for archive in ("", "noise/", "blur/", "weather/", "digital/", "extra/")
]
_ALL = [(name, severity) for name in (*ALEXNET_ERRORS, *EXTRA) for severity in SEVERITIES]
IMAGENET_C = {
    f"{name}-{severity}": Origin(
        f"ImageNet-C {name} {severity}",
        tuple(f"{place}{name}/{severity}" for place in _PLACES),
        Size(50_000, 1000),
        "https://zenodo.org/records/2235448",
        f"made of ImageNet's images: {imagenet_val.LICENCE}",
        stored,
        on_request=name in EXTRA,
        part_of="imagenet-c",
        each=50,
    )
    for name, severity in _ALL
}
IMAGENET_C_MADE = {
    f"{name}-{severity}": imagenet_val.of_val(
        f"ImageNet-C {name} {severity}, made here",
        Size(50_000, 1000),
        partial(made, corruption=name, severity=severity),
        on_request=name in EXTRA,
        part_of="imagenet-c-made",
    )
    for name, severity in _ALL
}
