"""The sets of the digits world."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.utils.data import Dataset

from cfmask import digits
from cfmask.data.datamodule import digits_tensors
from cfmask.errors import InputError
from cfmask.images import Preprocess
from cfmask.shift import Request, Shift, Size


def digits_shifts(request: Request) -> list[Shift]:
    """The sets of the digits world; in all but `id` the background does not predict the class."""
    if tuple(request.class_names) != digits.CLASS_NAMES:
        raise InputError(
            f"Expected a classifier of {', '.join(digits.CLASS_NAMES[:3])}, … for the digits, but "
            f"got one of {len(request.class_names)} other classes."
        )
    digits.check_count(request.images)

    def load(name: str, preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        return digits_tensors(name, request.images, request.seed, preprocess.size)

    names = ("id", "v2", "counter", "sketch", "rendition", "corruption")
    size, note = Size(request.images, min(10, request.images)), f"drawn with seed {request.seed}"
    return [Shift(name, partial(load, name), name == "id", found=size, note=note) for name in names]
