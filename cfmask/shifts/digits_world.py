"""The sets of the digits world."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cfmask import digits
from cfmask.data.datamodule import Tensors, digits_tensors, resized
from cfmask.errors import InputError
from cfmask.frame import Frame
from cfmask.images import Preprocess
from cfmask.shift import UNKNOWN, Request, Shift, Size

# Sets of no digits, which come only if they are asked for, and what they show.
NO_DIGITS = {
    "mirrored": "the images of id, mirrored, of those digits whose mirror image is none",
    "photographs": "the images of id without their digit",
}
# Digits whose mirror image is no digit.
ONE_SIDED = (2, 3, 4, 5, 6, 7, 9)


def no_digits(name: str, count: int, seed: int, size: tuple[int, int]) -> Tensors:
    """Images of one of the sets `NO_DIGITS` at the size that the encoder takes."""
    sampling, start = digits.SETS["id"], zlib.crc32(f"{name}/{seed}".encode())
    if name == "photographs":
        images = digits.draw(replace(sampling, opacity=(0, 0)), count, start).images
    else:
        # Seven of ten are one-sided, up to rounding.
        drawn = digits.draw(sampling, 2 * count + 10, start)
        kept = torch.isin(drawn.labels, torch.tensor(ONE_SIDED))
        images = drawn.images[kept][:count].flip(-1)
    return Tensors(resized(images, size), torch.full((count,), UNKNOWN))


# The images of id, half of them on a background that goes with their digit; grouped, on request.
CONTEXTS, TIED = "contexts", 0.5


def groups_of(count: int, seed: int) -> dict[str, Any]:
    """Facts of the `Shift` of `CONTEXTS`: each background with its own digit, and with others.

    Shares of training are those of the set `train` as it is drawn by default.
    """
    labels, backgrounds = digits.cues("id", count, seed, tied=TIED)
    tied, places = digits.SETS["train"].tied, digits.BACKGROUNDS[: len(digits.CLASS_NAMES)]
    pairs = zip(places, digits.CLASS_NAMES)
    return {
        "groups": tuple((2 * backgrounds + (labels != backgrounds)).tolist()),
        "group_names": tuple(f"{k} on {place}" for place, own in pairs for k in (own, "others")),
        "training_shares": (tied / len(places), (1 - tied) / len(places)) * len(places),
        "absent": ("", "BG") * len(places),
    }


# Sets of the first world that are for training.
TRAINING = ("train", "val")


def digits_shifts(request: Request, world: str = "digits") -> list[Shift]:
    """The test sets of one of `digits.WORLDS`; `id` is drawn as the training images are.

    In the first world the background predicts the class in `id` alone.
    Those of `NO_DIGITS`, and `CONTEXTS`, come only if they are asked for.

    Raises:
        InputError: a classifier of other classes, or too many images.
    """
    if tuple(request.class_names) != digits.CLASS_NAMES:
        raise InputError(
            f"Expected a classifier of {', '.join(digits.CLASS_NAMES[:3])}, … for the digits, but "
            f"got one of {len(request.class_names)} other classes."
        )
    digits.check_count(request.images)

    def load(name: str, preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        def drawn(size: tuple[int, int]) -> Tensors:
            if name in NO_DIGITS:
                return no_digits(name, request.images, request.seed, size)
            if name == CONTEXTS:
                return digits_tensors("id", request.images, request.seed, size, tied=TIED)
            return digits_tensors(name, request.images, request.seed, size, world)

        if not isinstance(preprocess, Frame):
            return drawn(preprocess.size)
        images = preprocess.of_square(lambda size: drawn(size).images)
        return Tensors(images, drawn(preprocess.base.size).labels)

    names = [name for name in digits.WORLDS[world] if name not in TRAINING]
    size, note = Size(request.images, min(10, request.images)), f"drawn with seed {request.seed}"
    if world == "digits" and (words := NO_DIGITS.get(request.only)):
        found, note = Size(request.images, 0), f"{words}; {note}"
        name = request.only
        return [Shift(name, partial(load, name), found=found, note=note, unknown=True)]
    if world == "digits" and request.only == CONTEXTS:
        note = f"the images of id, half of them on a background of another digit; {note}"
        facts = groups_of(request.images, request.seed)
        return [Shift(CONTEXTS, partial(load, CONTEXTS), found=size, note=note, **facts)]
    return [Shift(name, partial(load, name), name == "id", found=size, note=note) for name in names]
