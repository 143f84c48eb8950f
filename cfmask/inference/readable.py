"""Readable: a set whose unreadable images are either named at once or counted as wrong answers."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cfmask.errors import InputError, UnreadableImage

Unreadable = Literal["stop", "wrong"]


class Readable(Dataset[tuple[Tensor, int, bool]]):
    """Images uint8 (3, H, W) or finished, labels, and whether the image could be read.

    Args:
        data: images with labels; its items raise `UnreadableImage` for images that cannot be read.
            It may have `samples`, a path and a label of each image, and `labels` or `targets`, the
            labels alone.
        size: (H, W) of the images.
        unreadable: "stop" lets that error pass; "wrong" gives a black image in place. All other
            errors pass.
        finish: makes of an image what a model takes; None leaves it.
    """

    def __init__(
        self,
        data: Any,
        size: tuple[int, int],
        unreadable: Unreadable,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.data = data
        self.size = size
        self.unreadable = unreadable
        self.finish = finish

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        """Image, label, True if it was read."""
        try:
            image, label = self.data[index]
            read = True
        except UnreadableImage:
            if self.unreadable == "stop":
                raise
            image, label = torch.zeros(3, *self.size, dtype=torch.uint8), self.label(index)
            read = False
        return self.finish(image) if self.finish else image, int(label), read

    def label(self, index: int) -> int:
        """Label of an image, without reading it.

        Raises:
            InputError: the data do not tell it.
        """
        for name in ("labels", "targets"):
            labels = getattr(self.data, name, None)
            if labels is not None:
                return self._whole(labels[index], f"{name}[{index}]")
        if self.files is not None:
            return self._whole(self.files[index][1], f"samples[{index}][1]")
        raise InputError(
            f"Expected {type(self.data).__name__} to tell the label of image {index}, which cannot "
            "be read, but it has no labels, targets or samples; give it labels, or stop at images "
            "that cannot be read."
        )

    def _whole(self, value: Any, where: str) -> int:
        """A label as a whole number."""
        try:
            return operator.index(value)
        except TypeError as error:
            raise InputError(
                f"Expected {where} of {type(self.data).__name__} to be the number of a class, but "
                f"got {value!r:.50}."
            ) from error

    def labels(self) -> Tensor:
        """Label of every image, int64 (N,); images are read only where nothing else tells them.

        Raises:
            InputError: a label that is no number.
        """
        names = ("labels", "targets")
        told = self.files is not None or any(getattr(self.data, n, None) is not None for n in names)
        return torch.tensor([self.label(k) if told else self[k][1] for k in range(len(self))])

    def paths(self) -> list[str]:
        """Paths of the images, in order; their numbers if they are not files."""
        if self.files is None:
            return [str(index) for index in range(len(self))]
        return [str(path) for path, _ in self.files]

    @property
    def in_files(self) -> bool:
        """Whether the images are files."""
        return self.files is not None

    @cached_property
    def files(self) -> list[tuple[str | os.PathLike[str], Any]] | None:
        """Path and label of each image; None if `samples` is something else or not there."""
        samples = getattr(self.data, "samples", None)
        if not isinstance(samples, Sequence) or len(samples) != len(self):
            return None
        pairs = [sample for sample in samples if isinstance(sample, tuple) and len(sample) == 2]
        paths = [pair for pair in pairs if isinstance(pair[0], str | os.PathLike)]
        return paths if len(paths) == len(samples) else None
