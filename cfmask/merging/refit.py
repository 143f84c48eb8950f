"""Refit: the last layer of a model, fitted anew to curated images; the encoder stays as it is.

Source: last-layer retraining on curated data as in arXiv 2307.13136; equal weight of groups as in
Kirichenko et al. 2023 (arXiv 2204.02937), there by subsampling, here by weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cfmask import processes
from cfmask.checkpoint import load_classifier
from cfmask.classifier import Classifier
from cfmask.comparison.evaluate import evaluate
from cfmask.data.folders import hold_out, subset_of
from cfmask.errors import InputError, at_least, check_seed
from cfmask.exporting.provenance import Provenance, describe
from cfmask.exporting.writing import check_folder, write_export
from cfmask.heads import ZeroShotHead, fit_linear_head
from cfmask.images import Preprocess, to_unit
from cfmask.inference.readable import Readable
from cfmask.shift import Request, Shift, Size, check_apart
from cfmask.shifts.catalogue import find_shifts
from cfmask.shifts.named_folders import folder_set

BEFORE, AFTER = "before", "after"


def refit(
    what: str,
    data: str,
    out: str,
    groups: bool = False,
    split: str = "train",
    holdout: float = 0.2,
    images: int = 1000,
    batch_size: int = 250,
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
) -> Provenance:
    """Write a model with its last layer fitted anew, and judge both on what was held out.

    The layer is a linear one by logistic regression on the features, C = 1 on features of unit mean
    square, whatever the head was; a class takes part with all its images.

    Args:
        what: run folder or weights file.
        data: folder of class folders, with groups around or contexts in them, or with a list of
            images or shards; or a set such as `digits/contexts`.
        out: folder to write; it must be new or empty.
        groups: weigh images so that each group of the data counts alike.
        split: which images of a list to read, such as `val`.
        holdout: share of the images, in (0, 1), on which old and new layer are judged.
        images: number of images of a built-in set.
        batch_size: images at a time.
        workers: processes that decode images.
        seed: of the hold-out and of built-in sets.
        overwrite: replace an older model there.
        trust: import the class that the run names and that is not this package's.

    Returns:
        What was written, as provenance.json has it, with the report on the held-out images.

    Raises:
        InputError: a head that is none of features, data of other classes, of too few, or without
            groups where they are wanted, a folder of other files.
    """
    at_least(1, batch_size, "images at a time (batch_size)")
    at_least(0, workers, "workers")
    check_seed(seed)
    if not 0 < holdout < 1:
        raise InputError(f"Expected holdout in (0, 1), but got {holdout:g}.")
    check_folder(Path(out), overwrite)
    check_apart(Path(out), Path(data))
    classifier = load_classifier(what, trust=trust)
    if not isinstance(classifier.head, nn.Linear | ZeroShotHead):
        raise InputError(
            f"Expected a model with a head of its features to refit, but that of {what} is a "
            f"{type(classifier.head).__name__}."
        )
    device = processes.device()
    classifier.to(device).suit(device)
    request = Request(None, classifier.class_names, images, seed)
    shift = _found(data, split, request)
    labels = Readable(shift.load(classifier.preprocess), classifier.preprocess, "stop").labels()
    of = _groups_of(shift, data) if groups else None
    _check_classes(labels, classifier.class_names, data)
    kept, held = _divided(labels, shift, holdout, seed)
    features = _features(classifier, _subset(shift, kept), batch_size, workers)
    weights = None if of is None else equal_weights(of[kept])
    made = _with_layer(classifier, features, labels[kept], weights)
    report = evaluate(
        {BEFORE: classifier, AFTER: made},
        [_subset(shift, held)],
        batch_size,
        starts={AFTER: BEFORE},
        workers=workers,
        fit="none",
    )
    facts: dict[str, Any] = {"by": "refit", "of": [what, data], "groups": groups}
    facts |= {"fitted to": len(kept), "held out": len(held)}
    words = f"last layer fitted to {len(kept)} images" + ", groups alike" * groups
    described = describe(made.cpu(), "safetensors", [Path(what)], None)
    return write_export(
        made.eval(), replace(described, weights=words, report=report, merged=facts), out
    )


def _with_layer(
    classifier: Classifier, features: Tensor, labels: Tensor, weights: Tensor | None
) -> Classifier:
    """The classifier with a linear layer fitted to features (N, D) and labels (N,)."""
    head = nn.Linear(classifier.spec.width, len(classifier.class_names))
    fit_linear_head(head.to(processes.device()), features, labels, weights)
    return classifier.with_head(head, replace(classifier.spec, head="linear", head_from="probe"))


def equal_weights(groups: Tensor) -> Tensor:
    """Weight of each image, float32 (N,) of mean 1, by which all groups int64 (N,) weigh alike."""
    counts = groups.bincount()
    return len(groups) / (counts[groups] * (counts > 0).sum()).float()


def _found(data: str, split: str, request: Request) -> Shift:
    """The images of a folder, or of a set by its name."""
    if Path(data).exists():
        return replace(folder_set(Path(data), request.class_names, split), name=Path(data).name)
    several = find_shifts([data], request)
    if len(several) > 1:
        names = ", ".join(shift.name for shift in several)
        raise InputError(f"Expected one set to fit to, but {data} is {names}; name one of them.")
    if several[0].accepts is not None:
        raise InputError(f"Expected a set with the classes of the model, but {data} has others.")
    return several[0]


def _groups_of(shift: Shift, data: str) -> Tensor:
    if shift.groups is None:
        raise InputError(
            f"Expected groups in {data} to weigh alike, such as folders around or in the class "
            "folders, but it has none; leave out --groups."
        )
    return torch.tensor(shift.groups)


def _check_classes(labels: Tensor, names: tuple[str, ...], data: str) -> None:
    """A class without images would never be answered again."""
    missing = sorted(set(range(len(names))) - set(labels.tolist()))
    if missing:
        raise InputError(
            f"Expected images of all {len(names)} classes of the model in {data}, but "
            f"{names[missing[0]]!r} has none."
        )


def _divided(labels: Tensor, shift: Shift, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the images to fit to, and of those held out of each class and group alike."""
    parts = labels if shift.groups is None else torch.tensor(shift.groups) * 10**6 + labels
    strata = parts.unique(return_inverse=True)[1]
    return hold_out(strata, round(holdout * len(labels)), seed)


def _subset(shift: Shift, numbers: Tensor) -> Shift:
    """Some of the images of a set, as a clean set."""

    def load(preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        return subset_of(shift.load(preprocess), numbers)

    return Shift(
        f"{shift.name} held out",
        load,
        True,
        shift.classes,
        found=Size(len(numbers), shift.found.classes if shift.found else 0),
        note=shift.note,
        groups=shift.groups and tuple(shift.groups[k] for k in numbers.tolist()),
        group_names=shift.group_names,
    )


@torch.no_grad()
def _features(classifier: Classifier, shift: Shift, batch_size: int, workers: int) -> Tensor:
    """Features float (N, D) of a set on the device of the model, computed once."""
    look = classifier.preprocess
    data = Readable(shift.load(look), look, "stop")
    device = next(classifier.parameters()).device
    found = [
        classifier.features(to_unit(images.to(device)))
        for images, _, _ in DataLoader(data, batch_size, num_workers=workers)
    ]
    return torch.cat(found)
