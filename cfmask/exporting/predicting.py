"""Predicting: pictures and folders of them -> the likeliest classes, in batches."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfmask import processes
from cfmask.data.file_index import pictures_below
from cfmask.decoding import read_image
from cfmask.errors import InputError, UnreadableImage, at_least
from cfmask.exporting.reading import Predictor, open_model
from cfmask.files import whole_file
from cfmask.images import Preprocess
from cfmask.reporting.escapes import csv_cell

# What to do with a picture that cannot be read: end, or say so in its place.
Unreadable = Literal["stop", "name"]


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to a picture.

    Attributes:
        file: of the picture.
        classes: name and probability in [0, 1] of the likeliest classes, the likeliest first.
        fault: why the picture could not be read; empty if it could.
    """

    file: str
    classes: list[tuple[str, float]]
    fault: str = ""


def found_pictures(places: Sequence[str]) -> list[str]:
    """Picture files, and those in folders and the folders below, sorted; hidden ones left out.

    Raises:
        InputError: a folder without pictures.
    """
    files: list[str] = []
    for place in places:
        if not Path(place).is_dir():
            files.append(place)
            continue
        inside = pictures_below(Path(place))
        if not inside:
            raise InputError(f"Expected pictures in the folder {place}, but it has none.")
        files += inside
    return files


def predict(
    model: str,
    images: Sequence[str],
    top: int = 5,
    class_names: list[str] | None = None,
    trust: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    unreadable: Unreadable = "stop",
) -> Iterator[Prediction]:
    """The likeliest classes of pictures, one after the other, on the GPU if there is one.

    Args:
        model: run folder, exported folder or file, training checkpoint.
        images: picture files, and folders of them.
        top: number of classes a picture.
        class_names: names in place of the stored ones; an open_clip folder becomes a zero-shot
            classifier of them.
        trust: open .pt2 files, which can execute code; import the class that weights name; ask the
            network for parts that an open_clip folder lacks.
        batch_size: pictures at a time.
        workers: processes that read pictures; 0 reads in this one.
        unreadable: stop at a picture that cannot be read, or name what is wrong with it.

    Raises:
        InputError: see `open_model`; a picture that cannot be read; `top` below 1.
    """
    at_least(1, top, "class a picture")
    at_least(1, batch_size, "picture at a time (batch_size)")
    at_least(0, workers, "workers")
    predictor = open_model(model, class_names, trust).to(processes.device())
    files = found_pictures(images)
    pictures = _Pictures(files, predictor.preprocess, unreadable)
    loader = DataLoader(pictures, batch_size, num_workers=workers, collate_fn=list)
    bar = len(files) > batch_size and sys.stdout.isatty()
    batches = track(loader, "Pictures", disable=not bar, transient=True)
    rest = iter(files)
    for batch in batches:
        read = [image for image in batch if isinstance(image, Tensor)]
        rows = iter(_best(predictor, read, top) if read else [])
        for image in batch:
            if isinstance(image, Tensor):
                yield Prediction(next(rest), next(rows))
            else:
                yield Prediction(next(rest), [], image)


def write_csv(found: Iterable[Prediction], path: Path, top: int) -> tuple[int, int]:
    """Write a line for each picture: file, classes with their probabilities, and what was wrong.

    The file is there when it is whole. Text is never a formula.

    Args:
        found: the predictions.
        path: of the file.
        top: how many classes a picture at most.

    Returns:
        How many pictures there were, and how many could not be read.
    """
    heads = [head for place in range(1, top + 1) for head in (f"class {place}", f"share {place}")]
    counts = [0, 0]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *heads, "unreadable"])
        for one in found:
            cells: list[object] = [cell for pair in one.classes for cell in pair]
            cells += [""] * (len(heads) - len(cells))
            writer.writerow(map(csv_cell, [one.file, *cells, one.fault]))
            counts = [counts[0] + 1, counts[1] + bool(one.fault)]
    return counts[0], counts[1]


def _best(
    predictor: Predictor, images: Sequence[Tensor], top: int
) -> list[list[tuple[str, float]]]:
    """Names and probabilities of the likeliest classes of each image."""
    shares = predictor.shares(torch.stack(list(images)))
    values, order = shares.topk(min(top, shares.shape[1]))
    names = predictor.class_names
    return [
        [(names[k], share) for k, share in zip(best, row)]
        for best, row in zip(order.tolist(), values.tolist())
    ]


class _Pictures(Dataset[Tensor | str]):
    """Images uint8 (3, H, W) of files, or what is wrong with a file."""

    def __init__(self, files: Sequence[str], look: Preprocess, unreadable: Unreadable) -> None:
        self.files = files
        self.look = look
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.look(read_image(self.files[index], misfit=self.look.misfit))
        except UnreadableImage as error:
            if self.unreadable == "stop":
                raise
            return str(error)
