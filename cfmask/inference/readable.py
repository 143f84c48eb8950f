"""Readable: a set whose unreadable images stop an evaluation or count as wrong answers."""

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
from cfmask.images import Preprocess

Unreadable = Literal["stop", "wrong"]


class Readable(Dataset[tuple[Tensor, int, bool]]):
    """Images uint8 (3, H, W) or finished, labels, and whether the image could be read.

    Args:
        data: images with labels, which raise `UnreadableImage` for an image that cannot be read.
            It may have `samples`, path and label of each image, and `labels` or `targets`, the
            labels alone.
        look: the preprocessing by which they are read.
        unreadable: "stop" lets that error pass; "wrong" gives a black image instead.
        finish: makes of an image what a model takes; None leaves it.
    """

    def __init__(
        self,
        data: Any,
        look: Preprocess,
        unreadable: Unreadable,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.data = data
        self.look = look
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
            image, label = torch.zeros(3, *self.look.size, dtype=torch.uint8), self.label(index)
            read = False
        return self.finish(image) if self.finish else image, int(label), read

    @cached_property
    def _told(self) -> tuple[str, Sequence[Any]] | None:
        """Labels that are known without reading images, and what to call each; None if none are."""
        for name in ("labels", "targets"):
            labels = getattr(self.data, name, None)
            if labels is not None:
                return f"{name}[{{}}]", labels
        return None if self.files is None else ("samples[{}][1]", [k for _, k in self.files])

    def label(self, index: int) -> int:
        """Label of an image, without reading it.

        Raises:
            InputError: the data do not tell it, or it is no whole number.
        """
        if self._told is None:
            raise InputError(
                f"Expected {type(self.data).__name__} to tell the label of image {index}, which "
                "cannot be read, but it has no labels, targets or samples; give it labels, or stop "
                "at images that cannot be read."
            )
        where, labels = self._told
        try:
            return operator.index(labels[index])
        except TypeError as error:
            raise InputError(
                f"Expected {where.format(index)} of {type(self.data).__name__} to be the number of "
                f"a class, but got {labels[index]!r:.50}."
            ) from error

    def labels(self) -> Tensor:
        """Label of every image, int64 (N,); images are read only if nothing else tells them.

        Raises:
            InputError: a label that is no whole number.
        """
        known = self._told is not None
        return torch.tensor([self.label(k) if known else self[k][1] for k in range(len(self))])

    def paths(self) -> list[str]:
        """Paths of the images, in order; their numbers if they are not files."""
        if self.files is None:
            return [str(index) for index in range(len(self))]
        return [str(path) for path, _ in self.files]

    @cached_property
    def files(self) -> list[tuple[str | os.PathLike[str], Any]] | None:
        """Path and label of each image; None without such `samples`."""
        samples = getattr(self.data, "samples", None)
        if not isinstance(samples, Sequence) or len(samples) != len(self):
            return None
        pairs = [sample for sample in samples if isinstance(sample, tuple) and len(sample) == 2]
        paths = [pair for pair in pairs if isinstance(pair[0], str | os.PathLike)]
        return paths if len(paths) == len(samples) else None
