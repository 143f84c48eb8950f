"""Tasks of a comparison: zero-shot heads of other classes on the image towers of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.figures import Row
from cfmask.evaluation.forgetting import task_rows
from cfmask.families.described import has_text, untouched_text
from cfmask.heads import ZeroShotHead
from cfmask.inference.inference import Inference, Live, Model, described
from cfmask.inference.saved_answers import SavedAnswers
from cfmask.inference.settings import Settings
from cfmask.inference.wise import Blend, WeightLine
from cfmask.shifts.tasks import Task
from cfmask.text import Captions, TextTower, Tokenizer

# Text towers by the model and weights that they belong to.
Towers = dict[tuple[str, str], tuple[TextTower, Tokenizer]]


def text_tower_of(name: str, model: Model, trust: bool) -> tuple[TextTower, Tokenizer]:
    """The untouched text tower of a row's image tower, and its tokenizer.

    Raises:
        InputError: there is none, or its weights are none that the package or open_clip publishes
            and the file that names them is not trusted.
    """
    own = None if isinstance(model, SavedAnswers) else described(model)
    if not isinstance(own, Classifier) or not has_text(own):
        raise InputError(
            f"Expected models with a text tower for tasks, but {name} has none; evaluate it "
            "without --tasks."
        )
    return untouched_text(own, trust)


def towers_of(models: Mapping[str, Model], trust: bool) -> Towers:
    """The text towers of all rows, each once; errors are those of `text_tower_of`."""
    towers: Towers = {}
    for name, model in models.items():
        if isinstance(model, SavedAnswers) or _kind(model) not in towers:
            tower = text_tower_of(name, model, trust)
            assert not isinstance(model, SavedAnswers)
            towers[_kind(model)] = tower
    return towers


def _kind(model: Live) -> tuple[str, str]:
    spec: Any = getattr(described(model), "spec", None)
    return spec.model, str(spec.options.get("pretrained"))


def tasks_of(
    models: Mapping[str, Model],
    towers: Towers,
    tasks: Sequence[Task],
    starts: Mapping[str, str],
    settings: Settings,
) -> list[Row]:
    """Rows of zero-shot accuracy on each task, before and after tuning.

    Args:
        models: the rows of models as they are, on their device.
        towers: see `towers_of`.
        tasks: what they are asked.
        starts: row of a tuned model -> row of the model that it was tuned from.
        settings: how images are read; views and metrics are left out.
    """
    how = replace(settings, views={}, metrics={})
    found = {}
    for task in tasks:
        heads = {kind: _head(task, *tower) for kind, tower in towers.items()}
        lines: dict[WeightLine, WeightLine] = {}
        own: dict[str, Model] = {}
        for name, model in models.items():
            assert not isinstance(model, SavedAnswers)
            own[name] = _asked(model, task, heads[_kind(model)], lines)
        answers = Inference(own, how).answer([task.shift])
        found[task.name] = {name: answers[name][task.name] for name in models}
    return list(task_rows(found, starts))


def _head(task: Task, text: TextTower, tokenizer: Tokenizer) -> ZeroShotHead:
    device = processes.device()
    captions = Captions(text, tokenizer, task.class_names, task.templates).to(device)
    return ZeroShotHead(captions.head(text.to(device)))


def _asked(
    model: Live, task: Task, head: nn.Module, lines: dict[WeightLine, WeightLine]
) -> Classifier | Blend:
    """A row's model with the head of a task; the encoders are shared."""
    if isinstance(model, Blend):
        line = model.line
        if line not in lines:
            lines[line] = WeightLine(*(_headed(c, task, head) for c in (line.start, line.tuned)))
        return Blend(lines[line], model.alpha)
    assert isinstance(model, Classifier)
    return _headed(model, task, head)


def _headed(classifier: Classifier, task: Task, head: nn.Module) -> Classifier:
    options = {**classifier.spec.options, "templates": list(task.templates)}
    names = task.class_names
    spec = replace(classifier.spec, class_names=names, head="zero_shot", options=options)
    return classifier.with_head(head, spec)
