"""Models and sets whose answers are known."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

from cfmask import Classifier, InputError, Layout, Preprocess, ShiftReport, Spec
from cfmask import processes as own_processes
from cfmask.data.datamodule import Tensors
from cfmask.shift import Shift

CLASSES = 5


SIDE = 4


class ReadsTheLabel(nn.Module):
    """Features (B, K): one-hot of the label painted in the first pixel.

    Where the second pixel is white, an encoder that can be misled says the class after it.
    """

    def __init__(self, misled: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.misled = misled

    def forward(self, images):
        assert not self.training
        labels = (images[:, 0, 0, 0] * 255).round().long()
        if self.misled:
            labels = labels + (images[:, 0, 0, 1] == 1).long()
        return nn.functional.one_hot(labels % CLASSES, CLASSES) * self.scale


class Sees(Classifier):
    """A classifier around any encoder of images (B, 3, side, side), with features as logits."""

    def __init__(self, encoder: nn.Module, side: int = SIDE, head: nn.Module | None = None) -> None:
        names = tuple(str(k) for k in range(CLASSES))
        spec = Spec(type(encoder).__name__, names, Preprocess((side, side)))
        super().__init__(encoder, head or nn.Identity(), spec)
        self.eval()

    @classmethod
    def layout_of(cls, encoder, image_size):
        return Layout((1, 1), "")


def linear(classes: int = CLASSES) -> Sees:
    """A classifier whose logits are a random linear map of the pixels."""
    return Sees(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, classes)))


def random_images(count: int, seed: int = 0) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (count, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    return Tensors(images, torch.randint(CLASSES, (count,), generator=rng))


def painted(name: str, count: int, misleading: int = 0, reference: bool = False) -> Shift:
    """A set whose images have their label in the first pixel; the last ones mislead."""
    data = random_images(count)
    data.images[:, 0, 0, 0] = data.labels
    data.images[count - misleading :, 0, 0, 1] = 255
    return Shift(name, lambda preprocess: data, reference)


def models() -> dict[str, Classifier]:
    return {"good": Sees(ReadsTheLabel(False)), "misled": Sees(ReadsTheLabel(True))}


# A parent that has imported everything forks in no time; one thread each, so that nothing hangs.
FORK = mp.get_context("fork")


def _child(rank: int, count: int, port: int, folder: Path, make: Callable[[Path], Any]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(where, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    try:
        with own_processes.joined():
            make(folder / f"{rank}.json")
    except InputError as error:
        (folder / f"{rank}.txt").write_text(str(error))


def in_processes(count: int, folder: Path, make: Callable[[Path], Any]) -> None:
    """Run `make` in several processes that have joined, each with a file to write."""
    import socket

    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        FORK.Process(target=_child, args=(rank, count, port, folder, make)) for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def without_run(report: ShiftReport) -> ShiftReport:
    """A report without what differs from run to run."""
    return replace(report, run={})


SIZES = {"id": 53, "sketch": 8, "tiny": 2, "single": 1}


def odd_sets() -> list[Shift]:
    """Sets that no number of processes divides, some with fewer images than there are processes."""
    return [painted(name, n, n // 3, name == "id") for name, n in SIZES.items()]
