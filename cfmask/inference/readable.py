"""Readable: a set whose unreadable images are either named at once or counted as wrong answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cfmask.errors import InputError

Unreadable = Literal["stop", "wrong"]


class Readable(Dataset[tuple[Tensor, int, bool]]):
    """Images uint8 (3, H, W), labels, and whether the image could be read.

    Args:
        data: images with labels; its items raise an InputError for images that cannot be read.
        size: (H, W) of the images.
        unreadable: "stop" lets that error pass; "wrong" gives a black image in place.
    """

    def __init__(self, data: Any, size: tuple[int, int], unreadable: Unreadable) -> None:
        self.data = data
        self.size = size
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        """Image, label, True if it was read."""
        try:
            image, label = self.data[index]
            return image, int(label), True
        except InputError:
            if self.unreadable == "stop":
                raise
            return torch.zeros(3, *self.size, dtype=torch.uint8), self.label(index), False

    def label(self, index: int) -> int:
        """Label of an image, without reading it."""
        labels = getattr(self.data, "labels", None)
        return int(self.data.samples[index][1] if labels is None else labels[index])

    def paths(self) -> list[str]:
        """Paths of the images, in order; their numbers if they are not files."""
        samples: Iterable[Any] | None = getattr(self.data, "samples", None)
        if samples is None:
            return [str(index) for index in range(len(self))]
        return [str(sample[0]) for sample in samples]

    @property
    def in_files(self) -> bool:
        """Whether the images are files."""
        return hasattr(self.data, "samples")
