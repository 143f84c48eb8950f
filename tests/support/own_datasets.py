"""Data sets of one's own: pairs, columns, a stream."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset, IterableDataset

from support.pictures import noise

SIDE = 8


PIXELS = noise(SIDE, SIDE, seed=3)


TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


class Own(Dataset):
    """Some images that are all the same."""

    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Columns(Own):
    """What training on a Hugging Face dataset asks of it."""

    column_names = ("image", "kind")

    def __getitem__(self, index):
        return [item["kind"] for item in self.items] if index == "kind" else self.items[index]

    @property
    def features(self):
        return {"kind": type("ClassLabel", (), {"names": ["ant", "bee"]})}


class Stream(IterableDataset):
    """Images without end."""

    def __iter__(self):
        yield TENSOR, 0
