"""Unreadable images in training: all named before it begins, or passed over and counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfmask.decoding import Misfit, header, image_file, read_image
from cfmask.errors import InputError, UnreadableImage

# What to do; `fail` is the older word for `stop`.
Unreadable = Literal["stop", "skip", "fail"]

# So many in a row are no accident.
ROW = 100
# Where the end of a JPEG or PNG is looked for: cameras and programs leave notes after it.
TAIL = 4096
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


def check_file(path: str, misfit: Misfit | None = None) -> None:
    """Look at the first and last bytes of a picture file.

    A JPEG or PNG whose header can be read and whose end is there is taken for sound. Anything else
    is decoded. So damage between the two goes unnoticed, which costs 25 times as much to find.

    Args:
        path: of the file.
        misfit: why a size in pixels cannot be used.

    Raises:
        UnreadableImage: it is damaged, or has a size that does not fit.
    """
    with image_file(path) as file:
        image = header(file, path)
        size = image.height, image.width
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        end = ENDS.get(image.format or "")
        fits = misfit is None or not misfit(size)
        if fits and end is not None and end in file.read():
            return
    read_image(path, misfit=misfit)


def complaints(
    count: int, look: Callable[[int], object], workers: int, what: str, progress: bool
) -> list[str]:
    """What is wrong with each of some images; an empty text where nothing is.

    Args:
        count: number of images.
        look: reads one of them, or raises an InputError.
        workers: processes that read.
        what: they do, for the bar.
        progress: show a bar.
    """
    loader = DataLoader(_Looks(count, look), 256, num_workers=workers, collate_fn=list)
    batches = track(loader, what, disable=not progress, transient=True)
    return [complaint for batch in batches for complaint in batch]


class _Looks(Dataset[str]):
    def __init__(self, count: int, look: Callable[[int], object]) -> None:
        self.count = count
        self.look = look

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        try:
            self.look(index)
        except InputError as error:
            return str(error)
        return ""


def refuse_unreadable(
    paths: Sequence[str],
    workers: int = 0,
    progress: bool = False,
    misfit: Misfit | None = None,
) -> None:
    """Look at all files.

    Args:
        paths: of the pictures.
        workers: processes that read.
        progress: show a bar.
        misfit: why a size in pixels cannot be used.

    Raises:
        InputError: some cannot be read; the first 20 are named, with how many there are.
    """
    look = partial(_check_one, paths, misfit)
    answers = complaints(len(paths), look, workers, "Looking at all images", progress)
    broken = [path for path, complaint in zip(paths, answers, strict=True) if complaint]
    if len(broken) == 1:
        raise InputError(next(complaint for complaint in answers if complaint))
    if broken:
        raise InputError(
            f"Expected readable images, but {len(broken)} of {len(paths)} are not: "
            f"{', '.join(broken[:20])}{', …' if len(broken) > 20 else ''}; remove or replace them, "
            "or give unreadable: skip."
        )


def _check_one(paths: Sequence[str], misfit: Misfit | None, index: int) -> None:
    check_file(paths[index], misfit)


class Skipping(Dataset[tuple[Tensor, int]]):
    """A training set that gives the next image in place of one that cannot be read.

    Args:
        data: the images, N of them.

    Attributes:
        skipped: bool (N,), True for images that could not be read; worker processes write to it.
    """

    def __init__(self, data: Dataset[tuple[Tensor, int]]) -> None:
        self.data = data
        self.skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label.

        Raises:
            InputError: a hundred images in a row cannot be read.
        """
        for step in range(min(ROW, len(self))):
            at = (index + step) % len(self)
            try:
                return self.data[at]
            except UnreadableImage as error:
                self.skipped[at] = True
                last = error
        row = min(ROW, len(self))
        raise InputError(f"Expected few unreadable images, but got {row} in a row. {last}")

    def complaints(self) -> list[str]:
        """A line for each image that was skipped, with its path."""
        lines = []
        for index in self.skipped.nonzero().flatten().tolist():
            try:
                self.data[index]
                lines.append(f"Image {index} could not be read, and can now.")
            except UnreadableImage as error:
                lines.append(str(error))
        return lines
