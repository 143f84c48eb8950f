"""Evaluate: classifiers on shift sets -> a report of exact counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import torch
from rich.progress import Progress, TaskID
from torch.utils.data import DataLoader

from cfmask.classifier import Classifier
from cfmask.data.datamodule import to_unit
from cfmask.data.shifts import COMBINATIONS, Combination, Shift, mean_of
from cfmask.errors import InputError
from cfmask.metrics import combined, interval, right
from cfmask.report import Row, ShiftReport

Precision = Literal["fp32", "bf16"]


@torch.no_grad()
def evaluate(
    models: Mapping[str, Classifier],
    shifts: Sequence[Shift],
    batch_size: int = 250,
    workers: int = 0,
    precision: Precision = "fp32",
    progress: bool = False,
) -> ShiftReport:
    """Top-1 accuracy of each model on each set, every image counted once.

    Args:
        models: classifiers by the name of their row; they are put in eval mode for the time.
        shifts: the sets, from `find_shifts`.
        batch_size: images at a time; all models see the batch, so that images are read once.
        workers: processes that decode images.
        precision: bf16 runs the encoders under autocast; heads stay in fp32.
        progress: show a bar.

    Returns:
        A report with a row for each model and set, and for each mean of sets.

    Raises:
        InputError: no models or no sets, a set without images, labels outside the head.
    """
    if not models or not shifts:
        raise InputError("Expected at least one model and one shift set to evaluate, but got none.")
    rows: list[Row] = []
    with _eval_mode(models), Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("Evaluating", total=None)
        for shift in shifts:
            bar.update(task, description=f"Evaluating {shift.name}")
            rows += _one_set(models, shift, batch_size, workers, precision, bar, task)
    reference = [shift.name for shift in shifts if shift.in_distribution]
    rows += _means(rows, [shift.name for shift in shifts if not shift.in_distribution])
    return ShiftReport(
        rows, _protocol(models, shifts, precision), reference[0] if reference else None
    )


def _one_set(
    models: Mapping[str, Classifier],
    shift: Shift,
    batch_size: int,
    workers: int,
    precision: Precision,
    bar: Progress,
    task: TaskID,
) -> list[Row]:
    """Rows of one set; a set is read once for each preprocessing that the models have."""
    correct = dict.fromkeys(models, 0)
    total = 0
    for preprocess in dict.fromkeys(model.preprocess for model in models.values()):
        alike = {name: model for name, model in models.items() if model.preprocess == preprocess}
        data = shift.load(preprocess)
        total = 0
        for images, labels in DataLoader(data, batch_size, num_workers=workers):
            total += len(labels)
            for name, model in alike.items():
                device = next(model.parameters()).device
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(to_unit(images.to(device)))
                hits = right(logits, labels.to(device), shift.classes, shift.accepts)
                correct[name] += int(hits.sum())
            bar.advance(task, len(labels))
    if total == 0:
        raise InputError(f"Expected images in the set {shift.name}, but it has none.")
    return [
        Row(name, shift.name, "accuracy", hits / total, hits, total, *interval(hits, total))
        for name, hits in correct.items()
    ]


def _means(rows: Sequence[Row], shifted: Sequence[str]) -> list[Row]:
    """Those of `COMBINATIONS` whose sets are all there, and the mean of all shift sets."""
    wanted = _wanted(shifted)
    means = []
    for model in dict.fromkeys(row.model for row in rows):
        counts = {
            row.shift: (row.correct or 0, row.total or 1) for row in rows if row.model == model
        }
        for name, of in wanted.items():
            parts = [counts[s] for s in of.weights]
            value, low, high = combined(parts, list(of.weights.values()), of.constant)
            means.append(Row(model, name, "accuracy", value, None, None, low, high))
    return means


def _wanted(shifted: Sequence[str]) -> dict[str, Combination]:
    wanted = {name: of for name, of in COMBINATIONS.items() if set(of.weights) <= set(shifted)}
    return wanted | ({"mean of shifts": mean_of(*shifted)} if len(shifted) > 1 else {})


def _protocol(
    models: Mapping[str, Classifier], shifts: Sequence[Shift], precision: Precision
) -> dict[str, object]:
    """What a reader needs to know to compare the figures with others."""
    shifted = [shift.name for shift in shifts if not shift.in_distribution]
    return {
        "metric": "top-1 accuracy, every image counted once",
        "interval": "95 % Clopper-Pearson; of means: normal, from the sets' binomial variances",
        "means": {name: list(of.weights) for name, of in _wanted(shifted).items()},
        "sets": {shift.name: _set_protocol(shift) for shift in shifts},
        "missing sets": sorted({name for shift in shifts for name in shift.missing}),
        "models": {
            name: {"encoder": model.name, "preprocess": model.spec["preprocess"]}
            for name, model in models.items()
        },
        "precision": precision,
    }


def _set_protocol(shift: Shift) -> dict[str, object]:
    """The rule of one set; what does not concern it is left out."""
    facts: dict[str, object] = {
        "in_distribution": shift.in_distribution,
        "classes": "all" if shift.classes is None else len(shift.classes),
    }
    if shift.accepts is not None:
        several = sum(len(classes) > 1 for classes in shift.accepts.values())
        facts["one_to_many"] = (
            f"{len(shift.accepts)} classes of the set, {several} of them with several of the "
            "head's; right if the argmax is one of them"
        )
    if shift.found is not None and shift.expected is not None:
        found, expected = asdict(shift.found), asdict(shift.expected)
        facts["size"] = {"found": found, "expected": expected, "complete": found == expected}
    texts = {"note": shift.note, "source": shift.source, "licence": shift.licence}
    return facts | {key: text for key, text in texts.items() if text}


@contextlib.contextmanager
def _eval_mode(models: Mapping[str, Classifier]) -> Iterator[None]:
    """All models in eval mode; the mode of every module is put back."""
    modes = {module: module.training for model in models.values() for module in model.modules()}
    try:
        for model in models.values():
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
