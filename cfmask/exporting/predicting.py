"""Predicting: pictures and folders of them -> the likeliest classes, in batches."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.data.file_index import pictures_below
from cfmask.decoding import read_image
from cfmask.errors import InputError, UnreadableImage, at_least
from cfmask.exporting.reading import Predictor, open_model
from cfmask.families.described import OWN, Descriptors, described, has_text
from cfmask.files import whole_file
from cfmask.images import Preprocess, to_unit
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
        descriptors: of the likeliest class, each with its cosine to the picture, the highest first;
            empty unless they were asked for.
    """

    file: str
    classes: list[tuple[str, float]]
    fault: str = ""
    descriptors: list[tuple[str, float]] = field(default_factory=list)


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
    descriptions: str | None = None,
    normalise: bool = True,
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
        descriptions: JSON file {class: [descriptor, …]}, or `digits`: the head is made from these,
            and the descriptors of the likeliest class are given with their cosines; `own` keeps the
            head and takes the descriptions that the model was trained with.
        normalise: L2-normalise the mean of a class's descriptions.

    Raises:
        InputError: see `open_model` and `described`; a picture that cannot be read; `top` below 1.
    """
    at_least(1, top, "class a picture")
    at_least(1, batch_size, "picture at a time (batch_size)")
    at_least(0, workers, "workers")
    predictor = open_model(model, class_names, trust)
    explained = None
    if descriptions is not None:
        predictor, explained = _described(predictor, descriptions, normalise, trust)
    predictor = predictor.to(processes.device())
    files = found_pictures(images)
    pictures = _Pictures(files, predictor.preprocess, unreadable)
    loader = DataLoader(pictures, batch_size, num_workers=workers, collate_fn=list)
    bar = len(files) > batch_size and sys.stdout.isatty()
    batches = track(loader, "Pictures", disable=not bar, transient=True)
    rest = iter(files)
    for batch in batches:
        read = [image for image in batch if isinstance(image, Tensor)]
        best = _best(predictor, read, top) if read else []
        why = _why(predictor, read, best, explained) if explained and read else [[] for _ in read]
        rows = iter(zip(best, why))
        for image in batch:
            if isinstance(image, Tensor):
                classes, descriptors = next(rows)
                yield Prediction(next(rest), classes, "", descriptors)
            else:
                yield Prediction(next(rest), [], image)


def _described(
    predictor: Predictor, source: str, normalise: bool, trust: bool
) -> tuple[Predictor, Descriptors]:
    """The predictor with a head from descriptions, or with its own one, and the descriptors."""
    model = predictor.logits
    if not isinstance(model, Classifier) or not has_text(model):
        raise InputError(
            "Expected a model with a text tower for descriptions, such as a run of an open_clip "
            "model or its weights, but this one has none; leave descriptions out."
        )
    named = model if source == OWN else described(model, source, normalise, trust)
    return replace(predictor, logits=named), Descriptors.of(named, trust)


@torch.no_grad()
def _why(
    predictor: Predictor,
    images: Sequence[Tensor],
    best: Sequence[list[tuple[str, float]]],
    explained: Descriptors,
) -> list[list[tuple[str, float]]]:
    """Descriptors of the likeliest class of each image, with their cosines."""
    model = predictor.logits
    assert isinstance(model, Classifier)
    features = model.features(to_unit(torch.stack(list(images)).to(predictor.device)))
    names = dict(zip(predictor.class_names, model.class_names))
    return [explained.explain(own, names[row[0][0]]) for own, row in zip(features, best)]


def write_csv(
    found: Iterable[Prediction], path: Path, top: int, described: bool = False
) -> tuple[int, int]:
    """Write a line for each picture: file, classes with their probabilities, and what was wrong.

    The file is there when it is whole. Text is never a formula.

    Args:
        found: the predictions.
        path: of the file.
        top: how many classes a picture at most.
        described: add a column with the descriptors and their cosines.

    Returns:
        How many pictures there were, and how many could not be read.
    """
    heads = [head for place in range(1, top + 1) for head in (f"class {place}", f"share {place}")]
    counts = [0, 0]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *heads, "unreadable", *["descriptors"] * described])
        for one in found:
            cells: list[object] = [cell for pair in one.classes for cell in pair]
            cells += [""] * (len(heads) - len(cells))
            why = "; ".join(f"{text} {cosine:.3f}" for text, cosine in one.descriptors)
            writer.writerow(map(csv_cell, [one.file, *cells, one.fault, *[why] * described]))
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
