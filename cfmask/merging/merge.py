"""Merge: runs and weights files -> one weights file that says what it was made of.

An entry of `MERGERS` is one way of merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfmask import processes
from cfmask.checkpoint import PRETRAINED, WEIGHTS, average, interpolate, load_classifier
from cfmask.classifier import Classifier
from cfmask.comparison.sources import is_run
from cfmask.errors import InputError, at_least, check_seed, unknown
from cfmask.exporting.provenance import Provenance, describe
from cfmask.exporting.writing import check_folder, write_export
from cfmask.images import to_unit
from cfmask.inference.inference import Inference
from cfmask.inference.settings import Settings
from cfmask.merging.projection import Batch, tpgm
from cfmask.merging.soups import greedy_soup, model_stock
from cfmask.runs.marker import check_images, noted_images
from cfmask.runs.parts import training_data_of
from cfmask.runs.run_folder import RunFolder
from cfmask.shift import Shift

By = Literal["uniform", "greedy", "stock", "tpgm", "wise"]
# Images of a step of TPGM.
BATCH = 64


@dataclass(frozen=True)
class Given:
    """What is merged.

    Attributes:
        models: the tuned ones, by where they come from.
        start: the starting point of all; None where nobody has named it.
        held_out: validation images uint8 (3, H, W) with labels; None where nothing is fitted.
        alpha: weight in [0, 1] of the tuned model, for WiSE-FT.
        batch_size: images at a time, without gradients.
        workers: processes that decode images.
        seed: of the order in which images are drawn.
    """

    models: dict[str, Classifier]
    start: Classifier | None = None
    held_out: Dataset[tuple[Tensor, int]] | None = None
    alpha: float = 1.0
    batch_size: int = 250
    workers: int = 0
    seed: int = 0

    def ends(self) -> tuple[Classifier, Classifier]:
        """The starting point and the mean of the tuned models."""
        assert self.start is not None
        return self.start, average([*self.models.values()])

    def images(self) -> Dataset[tuple[Tensor, int]]:
        """The validation images."""
        assert self.held_out is not None
        return self.held_out

    def accuracy(self, model: Classifier) -> float:
        """Of a model on the validation images, in [0, 1]."""
        shift = Shift("validation", lambda preprocess: self.images())
        settings = Settings(batch_size=self.batch_size, workers=self.workers)
        inference = Inference({"": model.to(processes.device())}, settings)
        correct = inference.answer([shift])[""][shift.name].correct
        model.cpu()
        return int(correct.sum()) / len(correct)


# Classifier, what it is in words, and what was found on the way.
Merged = tuple[Classifier, str, dict[str, Any]]


def _uniform(given: Given) -> Merged:
    return average([*given.models.values()]), f"mean of {len(given.models)} models", {}


def _greedy(given: Given) -> Merged:
    names = [*given.models]
    soup, kept, alone = greedy_soup([*given.models.values()], given.accuracy)
    words = f"greedy soup of {len(kept)} of {len(names)} models"
    found = {name: round(share, 6) for name, share in zip(names, alone)}
    return soup, words, {"kept": [names[k] for k in kept], "validation accuracy": found}


def _stock(given: Given) -> Merged:
    start, _ = given.ends()
    model, shares = model_stock(start, [*given.models.values()])
    return model, f"Model Stock of {len(given.models)} models", {"weights of tensors": shares}


def _tpgm(given: Given) -> Merged:
    start, tuned = (model.to(processes.device()) for model in given.ends())
    batches = _Batches(given.images(), given.workers, given.seed)
    model, shares = tpgm(start, tuned, batches)
    return model.cpu(), f"TPGM of {_tuned(given)}", {"weights of tensors": shares}


def _wise(given: Given) -> Merged:
    words = f"WiSE-FT {given.alpha:g} of {_tuned(given)}"
    return interpolate(*given.ends(), given.alpha), words, {"alpha": given.alpha}


def _tuned(given: Given) -> str:
    return f"the mean of {len(given.models)} models" if len(given.models) > 1 else "one model"


class _Batches:
    """Images and labels on the device of this process, in another order in each pass."""

    def __init__(self, data: Dataset[tuple[Tensor, int]], workers: int, seed: int) -> None:
        order = torch.Generator().manual_seed(seed)
        self.loader = DataLoader(data, BATCH, True, num_workers=workers, generator=order)

    def __iter__(self) -> Iterator[Batch]:
        device = processes.device()
        for images, labels in self.loader:
            yield to_unit(images.to(device)), labels.to(device)


# Name -> what merges. Several models, the start, or validation images are needed by those below.
MERGERS: dict[str, Callable[[Given], Merged]] = {
    "uniform": _uniform,
    "greedy": _greedy,
    "stock": _stock,
    "tpgm": _tpgm,
    "wise": _wise,
}
SEVERAL = ("uniform", "greedy", "stock")
STARTED = ("stock", "tpgm", "wise")
FITTED = ("greedy", "tpgm")


def merge(
    what: Sequence[str],
    by: By,
    out: str,
    alpha: float | None = None,
    start: str | None = None,
    batch_size: int = 250,
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
) -> Provenance:
    """Write one model made of tuned ones, as a weights file with its provenance.

    Args:
        what: run folders or weights files of models tuned from one starting point.
        by: `uniform`: the mean. `greedy`: the mean of those that raise the accuracy on the
            validation images of the runs. `stock`: Model Stock. `wise`: WiSE-FT of the mean with
            the given alpha. `tpgm`: the same with a weight for each tensor, fitted on the
            validation images.
        out: folder to write; it must be new or empty.
        alpha: weight in [0, 1] of the tuned model against the starting point, for wise.
        start: weights of the starting point, where none of the runs has them.
        batch_size: images at a time, where greedy is judged.
        workers: processes that decode images.
        seed: of the order of images for tpgm.
        overwrite: replace an older model there.
        trust: import the classes that runs name and that are not this package's.

    Returns:
        What was written, as provenance.json has it.

    Raises:
        InputError: too few models, of other classes, another architecture or another starting
            point; no starting point or no validation images where they are needed, or runs that
            held out others; a folder of other files.
    """
    _check_words(what, by, alpha)
    at_least(1, batch_size, "images at a time (batch_size)")
    at_least(0, workers, "workers")
    check_seed(seed)
    check_folder(Path(out), overwrite)
    models = {name: load_classifier(name, trust=trust) for name in what}
    first = next(iter(models))
    for name, model in models.items():
        _check_alike(first, models[first], name, model)
    origin = _start_of(models, start, trust)
    if by in STARTED and origin is None:
        raise InputError(
            f"Expected the starting point of these models for {by}, but none of them is a run "
            "folder; give --start FILE."
        )
    held_out = _held_out(what, models[first], trust) if by in FITTED else None
    chosen = 1.0 if alpha is None else alpha
    given = Given(models, origin, held_out, chosen, batch_size, workers, seed)
    model, words, details = MERGERS[by](given)
    paths = [Path(name) for name in what]
    made = describe(model.eval(), "safetensors", paths, alpha)
    known = made.report if by == "wise" else None
    merged = {"by": by, "of": list(what), **details}
    return write_export(model, replace(made, weights=words, report=known, merged=merged), out)


def _check_words(what: Sequence[str], by: str, alpha: float | None) -> None:
    """Refuse what can be told to be wrong before a file is read."""
    if by not in MERGERS:
        raise unknown("way of merging", by, MERGERS)
    if len({Path(name).resolve() for name in what}) < len(what):
        raise InputError(f"Expected each model once, but got {' '.join(what)}.")
    at_least(2 if by in SEVERAL else 1, len(what), f"models for {by}")
    if (alpha is not None) != (by == "wise"):
        raise InputError(
            "Expected --alpha, a weight in [0, 1], for wise and for nothing else, but got "
            f"{by} with {alpha}."
        )


def _check_alike(first: str, one: Classifier, second: str, other: Classifier) -> None:
    """Refuse models the mean of whose weights has no sense, and say in what they differ."""
    pairs: list[tuple[Any, Any, str]] = [(one.class_names, other.class_names, "class names")]
    specs = one.spec.plain(), other.spec.plain()
    pairs += [
        (specs[0].get(key), specs[1].get(key), key)
        for key in {**specs[0], **specs[1]}
        if key not in ("class_names", "head_from")
    ]
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (one, other)]
    pairs.append((shapes[0], shapes[1], "shapes of weights"))
    for here, there, what in pairs:
        if here != there:
            shown = f": {here!r:.80} and {there!r:.80}" if what != "shapes of weights" else ""
            raise InputError(
                f"Expected models of one architecture and the same classes, but {first} and "
                f"{second} differ in {what}{shown}."
            )


def _start_of(models: dict[str, Classifier], given: str | None, trust: bool) -> Classifier | None:
    """The starting point that was given or that the run folders have; None if there is none.

    Raises:
        InputError: starting points that are not one and the same.
    """
    folders = [name for name in models if (Path(name) / PRETRAINED).is_file()]
    sources = ([given] if given else []) + folders
    starts = [
        load_classifier(name, WEIGHTS if name == given else PRETRAINED, trust) for name in sources
    ]
    for name, start in zip(sources, starts):
        _check_alike(sources[0], starts[0], name, start)
        own = start.state_dict()
        other = [k for k, v in starts[0].state_dict().items() if not torch.equal(v, own[k])]
        if other:
            raise InputError(
                f"Expected models tuned from one starting point, but those of {sources[0]} and "
                f"{name} differ in {other[0]}; tune both from one weights file (--model FILE)."
            )
    if not starts:
        return None
    _check_alike(sources[0], starts[0], *next(iter(models.items())))
    return starts[0]


def _held_out(what: Sequence[str], model: Classifier, trust: bool) -> Dataset[tuple[Tensor, int]]:
    """The validation images of the runs, on which none of them has trained."""
    runs = [name for name in what if is_run(name)]
    if not runs:
        raise InputError(
            "Expected a run folder among the models, whose validation images are used, but got "
            f"weights files alone: {' '.join(what)}."
        )
    noted = {name: noted_images(Path(name)) for name in runs}
    other = next((name for name in runs if noted[name] != noted[runs[0]]), None)
    if other:
        raise InputError(
            f"Expected runs with the same training and validation images, but {runs[0]} and "
            f"{other} have others, so that one may have trained on what would judge it; train "
            "with the same data, or merge by uniform or stock."
        )
    data = training_data_of(RunFolder(runs[0]), trust)
    data.prepare(model.preprocess)
    check_images(Path(runs[0]), data.identity())
    assert data.val_set is not None
    return data.val_set
