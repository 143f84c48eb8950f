"""Pictures of one's own, and the PNG that is drawn of them, for `show` and `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cfmask.decoding import read_image
from cfmask.errors import InputError
from cfmask.images import Preprocess


def png(out: str, pictures: Sequence[str]) -> Path:
    """The file to draw to.

    Raises:
        InputError: no .png in a folder that exists, or one of the pictures themselves.
    """
    if Path(out).suffix != ".png" or not Path(out).parent.is_dir():
        raise InputError(
            f"Expected --out to be a .png file in a folder that exists, but got {out}."
        )
    if any(Path(picture).resolve() == Path(out).resolve() for picture in pictures):
        raise InputError(f"Expected --out to be none of the pictures, but got {out}.")
    return Path(out)


def read_pictures(paths: Sequence[str], preprocess: Preprocess) -> Tensor:
    """Picture files as uint8 (N, 3, H, W), resized and cropped as a classifier takes them.

    Raises:
        InputError: a file that is no readable picture.
    """
    misfit = preprocess.misfit
    return torch.stack([preprocess(read_image(path, misfit=misfit)) for path in paths])
