"""Inference: models on sets -> answers; models of one preprocessing share the reading of images."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers, LabelRule
from cfmask.frame import plain
from cfmask.images import Preprocess, to_unit
from cfmask.inference.answer_store import AnswerStore, file_name, key_of, model_key, set_key
from cfmask.inference.any_model import AnyModel, Whole
from cfmask.inference.batch_statistics import Adapted, Shuffle, in_order, mixed
from cfmask.inference.images_bar import COLUMNS
from cfmask.inference.predictions import Add, join_parts, key_in, prediction_file
from cfmask.inference.readable import Readable
from cfmask.inference.saved_answers import SavedAnswers
from cfmask.inference.settings import Settings
from cfmask.inference.viewing import Heard, Viewing, frame_of, heard
from cfmask.inference.wise import Blend
from cfmask.precision import settled
from cfmask.shift import Shift
from cfmask.views.known_views import key_parts
from cfmask.views.view import View, metrics_of

# Images a forward pass on a CPU: their activations fit its cache, a fifth faster than hundreds.
CACHED = 50
# Models that are run, and models of a report.
Live = Classifier | Blend | AnyModel | Adapted
Model = Live | SavedAnswers
Judge = Callable[[Tensor, Tensor, Tensor], Answers]


@dataclass
class Tally:
    """What an evaluation has done.

    Attributes:
        images: number of images read and answered by all processes.
        seconds: duration.
        reused: sets of which all answers came from an earlier evaluation.
        unreadable: paths of unreadable images, by name of the set.
        views: by name of a view, how sets are read for it -> these sets.
    """

    images: int = 0
    seconds: float = 0.0
    reused: list[str] = field(default_factory=list)
    unreadable: dict[str, list[str]] = field(default_factory=dict)
    views: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def classifier_of(model: Live) -> Classifier | AnyModel:
    """The model to run; that of a blend is valid until another point of its line is asked for."""
    base = model.model if isinstance(model, Adapted) else model
    return base.classifier() if isinstance(base, Blend) else base


def described(model: Live) -> Classifier | AnyModel:
    """The model that has the name, classes and preprocessing; a blend has those of its end."""
    base = model.model if isinstance(model, Adapted) else model
    return base.line.tuned if isinstance(base, Blend) else base


def classes_of(model: Model) -> tuple[str, ...]:
    """Names of the classes that a model tells apart."""
    return (model if isinstance(model, SavedAnswers) else described(model)).class_names


def facts_of(model: Model) -> dict[str, Any]:
    """Facts of a model for the protocol."""
    if isinstance(model, SavedAnswers):
        return {"encoder": model.name}
    own = described(model)
    adapted = model.facts() if isinstance(model, Adapted) else {}
    return {"encoder": own.name, "preprocess": own.preprocess.spec(), **adapted}


def _reading(model: Live) -> tuple[Preprocess, Shuffle | None]:
    """How a set is read; models of one way share it. A shuffle of None is the set's order."""
    return described(model).preprocess, model.shuffle if isinstance(model, Adapted) else None


def _device(model: Classifier | AnyModel) -> torch.device:
    """The device of the weights; the CPU for a function without any."""
    return next((part.device for part in model.parameters()), torch.device("cpu"))


class Inference:
    """Answers of models to sets.

    Args:
        models: by the name of their row.
        settings: how they are made.
    """

    def __init__(self, models: Mapping[str, Model], settings: Settings) -> None:
        self.models = {n: m for n, m in models.items() if not isinstance(m, SavedAnswers)}
        self.saved = {n: m for n, m in models.items() if isinstance(m, SavedAnswers)}
        self.order = list(models)
        self.settings = settings
        devices = [_device(classifier_of(model)).type for model in self.models.values()]
        self.precision = settled(settings.precision, devices[0] if devices else "cpu")
        self.store = AnswerStore(settings.store, settings.others) if settings.store else None
        self.tally = Tally()
        shown = settings.progress and processes.rank() == 0
        self.bar = Progress(*COLUMNS, disable=not shown, transient=True)

    @torch.no_grad()
    def answer(self, shifts: Sequence[Shift]) -> dict[str, dict[str, Answers]]:
        """Answers by model and set, in every process.

        Raises:
            InputError: a set without images or with another number of groups, labels outside the
                head, an unreadable image, weights or logits that are not finite.
        """
        for name, model in self.models.items():
            _check_weights(name, model)
        found: dict[str, dict[str, Answers]] = {name: {} for name in self.order}
        began = time.perf_counter()
        with eval_mode(self.models.values()), self.bar:
            keys = self._model_keys()
            looks = len(set(map(_reading, self.models.values())))
            sizes = [shift.found.images if shift.found else 0 for shift in shifts]
            task = self.bar.add_task("", total=looks * sum(sizes))
            for shift in shifts:
                self.bar.update(task, description=shift.name)
                for name, answers in self._one_set(shift, keys).items():
                    found[name][shift.name] = answers
            if self.saved:
                sets = {shift.name: self._images(shift, Preprocess()) for shift in shifts}
                for name, saved in self.saved.items():
                    found[name] = saved.answers(shifts, sets, self.settings.logits)
        self.tally.seconds = time.perf_counter() - began
        return {name: found[name] for name in self.order}

    def _model_keys(self) -> dict[str, str]:
        """Key of each model; empty for any code but a classifier's, whose answers are not kept."""
        if self.store is None or processes.rank() or key_parts(self.settings.views) is None:
            return dict.fromkeys(self.models, "")
        keys = {}
        for name, model in self.models.items():
            # Points of one line share an object, which holds the weights of the last one asked for.
            own = classifier_of(model)
            keys[name] = model_key(own) if isinstance(own, Classifier) else ""
            if keys[name] and isinstance(model, Adapted):
                keys[name] = key_of(keys[name], f"{model.alpha!r} {model.shuffle}")
        return keys

    def _one_set(self, shift: Shift, keys: Mapping[str, str]) -> dict[str, Answers]:
        """Answers of all models; the set is read once for each preprocessing and order."""
        answers: dict[str, Answers] = {}
        for reading in dict.fromkeys(map(_reading, self.models.values())):
            own = {n: k for n, k in keys.items() if _reading(self.models[n]) == reading}
            data = self._images(shift, reading[0], self.settings.views)
            for model in map(self.models.__getitem__, own):
                if isinstance(model, AnyModel):
                    model.numbered(data[0][0].to(_device(model)))
            answers |= self._of_alike(shift, data, own)
        return {name: answers[name] for name in self.models}

    def _images(
        self, shift: Shift, look: Preprocess, views: Mapping[str, View] = MappingProxyType({})
    ) -> Readable:
        look = replace(look, decoder=self.settings.decoder)
        frame = frame_of(shift, look, views, self.tally.views)
        finish = look.finish if isinstance(look, Whole) else None
        data = Readable(shift.load(frame), frame, self.settings.unreadable, finish)
        if not len(data):
            raise InputError(f"Expected images in the set {shift.name}, but it has none.")
        told = {
            "group": shift.groups and len(shift.groups),
            "trajectory and scale": shift.ladder and shift.ladder.images,
        }
        for what, count in told.items():
            if count is not None and count != len(data):
                raise InputError(
                    f"Expected a {what} for each of the {len(data)} images of {shift.name}, but "
                    f"got {count}."
                )
        return data

    def _of_alike(
        self, shift: Shift, data: Readable, keys: Mapping[str, str]
    ) -> dict[str, Answers]:
        """Answers of the models of one reading, kept ones where there are any."""
        where: dict[str, tuple[Path, str]] = {}
        known = processes.from_first(lambda: self._kept(shift, data, keys, where))
        self._expect(shift, len(data), reused=len(known) == len(keys))
        wanted = [name for name in keys if name not in known]
        answers = known | (self._fresh(shift, data, wanted, where) if wanted else {})
        broken = (~next(iter(answers.values())).readable).nonzero().flatten().tolist()
        if broken:
            paths = data.paths()
            self.tally.unreadable[shift.name] = [paths[i] for i in broken]
        return answers

    def _fresh(
        self,
        shift: Shift,
        data: Readable,
        names: Sequence[str],
        where: Mapping[str, tuple[Path, str]],
    ) -> dict[str, Answers]:
        """New answers, made by all processes together and kept by the first."""
        count, token = processes.count(), processes.from_first(lambda: secrets.token_hex(6))
        every = {name: self._prediction_file(shift, name) for name in names}
        files = {name: file for name, file in every.items() if file}
        parts = {
            name: [_part(file, token, i) for i in range(count)] for name, file in files.items()
        }
        mine = [own[processes.rank()] for own in parts.values()]

        def keep() -> None:
            for name, answers in fresh.items():
                path, key = where.get(name, (None, ""))
                if name in files:
                    join_parts(parts[name], files[name], key)
                if self.store and path:
                    self.store.save(path, answers, key)

        try:
            made = processes.gathered(lambda: self._own_part(shift, data, names, mine))
            fresh = {name: Answers.joined([part[name] for part in made]) for name in names}
            shuffle = _reading(self.models[names[0]])[1]
            fresh = {n: shuffle.restored(a) if shuffle else a for n, a in fresh.items()}
            self.tally.images += len(data)
            processes.from_first(keep)
            return fresh
        finally:
            for part in mine:
                with contextlib.suppress(OSError):
                    part.unlink()

    def _expect(self, shift: Shift, images: int, reused: bool) -> None:
        """Correct the bar's total by a set of unknown size, or one that is not read."""
        task = self.bar.tasks[0]
        if shift.found is None:
            self.bar.update(task.id, total=(task.total or 0) + images)
        if reused:
            self.tally.reused = [*dict.fromkeys([*self.tally.reused, shift.name])]
            self.bar.update(task.id, total=(task.total or 0) - images)

    def _kept(
        self,
        shift: Shift,
        data: Readable,
        keys: Mapping[str, str],
        where: dict[str, tuple[Path, str]],
    ) -> dict[str, Answers]:
        """Answers of an earlier evaluation; fills `where` with file and key of each model."""
        keys = {name: key for name, key in keys.items() if key}
        if self.store is None or not keys:
            return {}
        own = set_key(shift, data)
        how = [str(self.precision), str(self.settings.decoder), *["logits"] * self.settings.logits]
        how += key_parts(self.settings.views) or []
        for name, key in keys.items():
            whole = key_of(own, key, *how)
            where[name] = self.store.path(name, shift.name, whole), whole
        found = {}
        for name, (path, key) in where.items():
            answers, file = self.store.find(path, key), self._prediction_file(shift, name)
            if answers is not None and (file is None or key_in(file) == key):
                found[name] = answers
        return found

    def _prediction_file(self, shift: Shift, name: str) -> Path | None:
        """The file of a model's predictions; None if they are not wanted."""
        folder = self.settings.predictions
        return folder and folder / f"{file_name(name, shift.name)}.parquet"

    def _own_part(
        self, shift: Shift, data: Readable, names: Sequence[str], files: Sequence[Path]
    ) -> dict[str, Answers]:
        """Answers to this process's part of a set, which may be empty.

        `files` are for the predictions of each model; there are none if these are not wanted.
        """
        answers: dict[str, list[Answers]] = {name: [] for name in names}
        shuffle = _reading(self.models[names[0]])[1]
        batches = (
            shuffle.batches(len(data)) if shuffle else in_order(len(data), self.settings.batch_size)
        )
        paths = data.paths() if self.settings.predictions else []
        with contextlib.ExitStack() as stack:
            judges = {
                name: stack.enter_context(self._judge(shift, name, file))
                for name, file in zip_longest(names, files)
            }
            loader = DataLoader(
                data,
                batch_sampler=batches,
                num_workers=self.settings.workers,
                pin_memory=torch.cuda.is_available(),
            )
            for numbers, (images, labels, readable) in zip(batches, loader):
                batch = [paths[i] for i in numbers] if paths else []
                for name in names:
                    model, look = self.models[name], described(self.models[name]).preprocess
                    images = to_unit(images.to(_device(classifier_of(model)), non_blocking=True))
                    ask = partial(self._ask, model)
                    said = logits, _ = ask(plain(images, data.look, look))
                    if not logits.isfinite().all():
                        raise InputError(
                            f"Expected finite logits, but {name} gives NaN or infinity on images "
                            f"of {shift.name} in {self.precision}."
                        )
                    judge, add = judges[name]
                    views = Viewing(self.settings.views, look, data.look, shift)
                    judged = views(judge(logits, labels, readable), said, images, ask, numbers)
                    add(batch, judged, logits)
                    answers[name].append(judged)
                self.bar.advance(self.bar.task_ids[0], len(labels) * processes.count())
            for name in names if not batches else []:
                none = torch.zeros(0, dtype=torch.int64)
                heads = len(described(self.models[name]).class_names)
                answers[name].append(judges[name][0](torch.zeros(0, heads), none, none.bool()))
        return {name: Answers.joined(own_answers) for name, own_answers in answers.items()}

    @contextlib.contextmanager
    def _judge(self, shift: Shift, name: str, part: Path | None) -> Iterator[tuple[Judge, Add]]:
        """What makes answers of logits, labels and readable, and what writes the predictions."""
        heads = len(described(self.models[name]).class_names)
        rule = LabelRule(heads, shift.classes, shift.accepts, shift.name)
        judge = partial(rule.judge, keep_logits=self.settings.logits)
        if part is None:
            yield judge, lambda paths, answers, logits: None
            return
        columns = list(metrics_of(self.settings.views))
        with prediction_file(part, rule.classes.tolist(), columns) as write:
            yield (
                judge,
                lambda paths, answers, logits: write(paths, answers, logits.cpu()[:, rule.classes]),
            )

    def _ask(self, model: Live, images: Tensor) -> Heard:
        """Logits (B, K) and, if views are shown to a classifier, features (B, D)."""
        kind, network = images.device.type, classifier_of(model)
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            if isinstance(model, Adapted):
                with mixed(network, model.alpha):
                    return heard(network, [images], bool(self.settings.views))
            parts = images.split(CACHED if kind == "cpu" else len(images))
            return heard(network, parts, bool(self.settings.views))


def _part(path: Path, token: str, rank: int) -> Path:
    """Where a process writes its part of a file; unique to an evaluation."""
    # A name's end, with its hash, tells files apart.
    return path.with_name(f".{path.stem[-40:]}-{rank}.{token}.partial")


def _check_weights(name: str, model: Live) -> None:
    """Refuse weights that are not finite, before an image is read."""
    base = model.model if isinstance(model, Adapted) else model
    for part in (base.line.start, base.line.tuned) if isinstance(base, Blend) else (base,):
        # A buffer may be an attention mask, with -inf.
        wrong = [k for k, value in part.named_parameters() if not value.isfinite().all()]
        wrong += [k for k, value in part.named_buffers() if value.isnan().any()]
        if wrong:
            raise InputError(
                f"Expected finite weights, but {wrong[0]} of {name} has NaN or infinity; did its "
                "training diverge? Take an earlier checkpoint."
            )


@contextlib.contextmanager
def eval_mode(models: Iterable[Live]) -> Iterator[None]:
    """Context with all models in eval mode; then every module has its mode back."""
    modules = [module for model in models for module in classifier_of(model).modules()]
    modes = {module: module.training for module in modules}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
