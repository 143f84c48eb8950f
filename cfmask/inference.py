"""Inference: models on sets -> answers, every image read once for all models that see it alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cfmask import processes
from cfmask.answer_store import AnswerStore, key_of, model_key, set_key
from cfmask.answers import Answers, LabelRule
from cfmask.classifier import Classifier
from cfmask.data.datamodule import to_unit
from cfmask.data.images import Decoder
from cfmask.data.shifts import Shift
from cfmask.errors import InputError
from cfmask.wise import Blend

Precision = Literal["fp32", "bf16"]
Model = Classifier | Blend


@dataclass
class Tally:
    """What an evaluation has done.

    Attributes:
        images: number of images read and answered by all processes.
        seconds: that this took.
        reused: sets of which all answers were there from an earlier evaluation.
    """

    images: int = 0
    seconds: float = 0.0
    reused: list[str] = field(default_factory=list)


def classifier_of(model: Model) -> Classifier:
    """The classifier itself; a blend's until another one of its line is asked for."""
    return model.classifier() if isinstance(model, Blend) else model


class Inference:
    """Answers of models to sets.

    Args:
        models: by the name of their row.
        batch_size: images at a time.
        workers: processes that decode images.
        precision: bf16 runs the encoders under autocast; heads stay in fp32.
        decoder: of image files.
        store: where answers are kept and looked for; None keeps none.
        progress: show a bar with images a second and the time left over all sets.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        batch_size: int,
        workers: int,
        precision: Precision,
        decoder: Decoder,
        store: Path | None,
        progress: bool,
    ) -> None:
        self.models = models
        self.batch_size = batch_size
        self.workers = workers
        self.precision = precision
        self.decoder = decoder
        self.store = AnswerStore(store) if store else None
        self.tally = Tally()
        shown = progress and processes.rank() == 0
        self.bar = Progress(*_COLUMNS, disable=not shown, transient=True)

    @torch.no_grad()
    def answer(self, shifts: Sequence[Shift]) -> dict[str, dict[str, Answers]]:
        """Answers by model and set, in every process.

        Raises:
            InputError: a set without images, labels outside the head, an image that cannot be
                read, logits that are no numbers.
        """
        found: dict[str, dict[str, Answers]] = {name: {} for name in self.models}
        began = time.perf_counter()
        with _eval_mode(self.models.values()), self.bar:
            keys = self._model_keys()
            looks = len({classifier_of(model).preprocess for model in self.models.values()})
            sizes = [shift.found.images if shift.found else 0 for shift in shifts]
            task = self.bar.add_task("", total=looks * sum(sizes))
            for shift in shifts:
                self.bar.update(task, description=shift.name)
                for name, answers in self._one_set(shift, keys).items():
                    found[name][shift.name] = answers
        self.tally.seconds = time.perf_counter() - began
        return found

    def _model_keys(self) -> dict[str, str]:
        if self.store is None or processes.rank():
            return dict.fromkeys(self.models, "")
        return {name: model_key(classifier_of(model)) for name, model in self.models.items()}

    def _one_set(self, shift: Shift, keys: Mapping[str, str]) -> dict[str, Answers]:
        """Answers of all models; a set is read once for each preprocessing that they have."""
        answers: dict[str, Answers] = {}
        looks = dict.fromkeys(classifier_of(m).preprocess for m in self.models.values())
        for look in looks:
            alike = [n for n, m in self.models.items() if classifier_of(m).preprocess == look]
            data = shift.load(replace(look, decoder=self.decoder))
            if not len(data):  # type: ignore[arg-type]
                raise InputError(f"Expected images in the set {shift.name}, but it has none.")
            paths = self._paths(shift, data, alike, keys)
            known = processes.from_first(lambda paths=paths: self._known(paths))  # type: ignore[misc]
            self._expect(shift, len(data), reused=len(known) == len(alike))  # type: ignore[arg-type]
            wanted = [name for name in alike if name not in known]
            fresh = self._run(shift, data, wanted) if wanted else {}
            if self.store and processes.rank() == 0:
                for name, own in fresh.items():
                    self.store.save(paths[name], own)
            answers |= known | fresh
        return {name: answers[name] for name in self.models}

    def _expect(self, shift: Shift, images: int, reused: bool) -> None:
        """Count a set whose size was not known, or whose answers need no image."""
        task = self.bar.tasks[0]
        if shift.found is None:
            self.bar.update(task.id, total=(task.total or 0) + images)
        if reused:
            self.tally.reused.append(shift.name)
            self.bar.update(task.id, total=(task.total or 0) - images)

    def _paths(
        self, shift: Shift, data: Dataset[Any], names: Sequence[str], keys: Mapping[str, str]
    ) -> dict[str, Path]:
        """Where the answers of models to a set are kept; none but in the first process."""
        if self.store is None or processes.rank():
            return {}
        own, how = set_key(shift, data), (self.precision, self.decoder)
        return {
            name: self.store.path(name, shift.name, key_of(own, keys[name], *how)) for name in names
        }

    def _known(self, paths: Mapping[str, Path]) -> dict[str, Answers]:
        """Answers that an earlier evaluation has left."""
        found = {name: self.store.load(path) for name, path in paths.items() if self.store}
        return {name: answers for name, answers in found.items() if answers is not None}

    def _run(self, shift: Shift, data: Dataset[Any], names: Sequence[str]) -> dict[str, Answers]:
        """Answers of models that see a set alike, from all processes."""
        parts = processes.gathered(lambda: self._own_part(shift, data, names))
        self.tally.images += len(data)  # type: ignore[arg-type]
        return {name: Answers.joined([part[name] for part in parts]) for name in names}

    def _own_part(
        self, shift: Shift, data: Dataset[Any], names: Sequence[str]
    ) -> dict[str, Answers]:
        """Answers to this process's part of a set, which may have no image."""
        answers: dict[str, list[Answers]] = {name: [] for name in names}
        rules: dict[int, LabelRule] = {}

        def judge(name: str, logits: Tensor, labels: Tensor) -> None:
            heads = logits.shape[1]
            if heads not in rules:
                rules[heads] = LabelRule(heads, shift.classes, shift.accepts)
            answers[name].append(rules[heads].judge(logits, labels))

        part = Subset(data, processes.own_part(len(data)))  # type: ignore[arg-type]
        for images, labels in DataLoader(part, self.batch_size, num_workers=self.workers):
            for name in names:
                images, logits = self._logits(classifier_of(self.models[name]), images)
                judge(name, logits, labels)
            self.bar.advance(self.bar.task_ids[0], len(labels) * processes.count())
        if not len(part):
            for name in names:
                heads = len(classifier_of(self.models[name]).class_names)
                judge(name, torch.zeros(0, heads), torch.zeros(0, dtype=torch.int64))
        return {name: Answers.joined(own) for name, own in answers.items()}

    def _logits(self, model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as floats on the model's device, for the next model, and logits (B, K)."""
        device = next(model.parameters()).device
        images = to_unit(images.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return images, model(images)


class ImagesPerSecond(ProgressColumn):
    """Column of a progress bar: images a second."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn`."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


_COLUMNS = (
    TextColumn("Evaluating {task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    ImagesPerSecond(),
    TimeRemainingColumn(),
    TextColumn("left"),
)


@contextlib.contextmanager
def _eval_mode(models: Iterable[Model]) -> Iterator[None]:
    """All models in eval mode; the mode of every module is put back."""
    modules = [module for model in models for module in classifier_of(model).modules()]
    modes = {module: module.training for module in modules}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
