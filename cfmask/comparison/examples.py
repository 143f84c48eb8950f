"""Disagreement: an image that one of two models gets right and the other wrong.

Letters: B images, (H, W) pixels, (h, w) patch grid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers, LabelRule
from cfmask.images import to_unit
from cfmask.inference.inference import Model
from cfmask.inference.readable import Readable
from cfmask.inference.wise import Blend
from cfmask.relevance import Relevance, default_relevance
from cfmask.reporting.disagreement import Answer, Disagreement
from cfmask.shift import Shift

# The relevance of a run, or why it cannot be made.
Explainer = Relevance | InputError


def gallery(
    models: Mapping[str, Model],
    shifts: Sequence[Shift],
    count: int = 4,
    explainers: Mapping[str, Explainer] = MappingProxyType({}),
) -> list[Disagreement]:
    """Disagreements for a report: those of a starting point and the model tuned from it.

    Args:
        models: the rows of the report, in eval mode. The two are the ends of the first WiSE-FT line
            among them, else the first two.
        shifts: the sets; those that are parts of a large collection are left out.
        count: most images of a set.
        explainers: relevance of a row's own run, or why it cannot be made. One explains both
            models: that of the tuned one, if it has any.

    Returns:
        What `disagreements` finds; nothing if there are no two models of the same classes and
        preprocessing.
    """
    whole = {name: model for name, model in models.items() if isinstance(model, Classifier)}
    line = next((model.line for model in models.values() if isinstance(model, Blend)), None)
    ends = [name for name, model in whole.items() if line and model in (line.start, line.tuned)]
    names = (ends if len(ends) == 2 else list(whole))[:2]
    looks = {(whole[name].class_names, whole[name].preprocess) for name in names}
    if len(names) < 2 or len(looks) > 1 or not count:
        return []
    first, second = names
    few = [shift for shift in shifts if not (shift.part_of or shift.unknown)]
    explainer = explainers.get(second) or explainers.get(first)
    both = whole[first], whole[second]
    return disagreements(*both, few, count, names=(first, second), explainer=explainer)


def disagreements(
    first: Classifier,
    second: Classifier,
    shifts: Sequence[Shift],
    count: int = 4,
    limit: int = 500,
    batch_size: int = 100,
    names: tuple[str, str] = ("pretrained", "tuned"),
    explainer: Explainer | None = None,
) -> list[Disagreement]:
    """Images of each set on which exactly one of two models is right.

    At most `limit` images of a set are looked at, in an order drawn with a fixed seed, until there
    are enough: the first ones found are taken, none is chosen. Unreadable images are left out.

    Args:
        first: a classifier in eval mode, such as the pretrained one.
        second: another with the same classes and preprocessing, such as the tuned one.
        shifts: the sets.
        count: most images of a set; half of them are right with the first model, half with the
            second, as far as there are any.
        limit: most images of a set that are looked at.
        batch_size: images at a time.
        names: of the rows of both models.
        explainer: makes the relevance, or why it cannot be made; where it has none of an image
            (saved maps are of training images), the default of the model's architecture does.

    Raises:
        InputError: the models have other classes or other preprocessing; labels outside the head.
    """
    if first.class_names != second.class_names or first.preprocess != second.preprocess:
        raise InputError(
            f"Expected two models of the same classes and preprocessing to compare by images, but "
            f"got {first.name} and {second.name}; compare their counts instead."
        )
    models = dict(zip(names, (first, second)))
    return [
        found
        for shift in shifts
        for found in _of_one_set(models, shift, count, limit, batch_size, explainer)
    ]


def _of_one_set(
    models: Mapping[str, Classifier],
    shift: Shift,
    count: int,
    limit: int,
    batch_size: int,
    explainer: Explainer | None,
) -> list[Disagreement]:
    """Up to half of `count` that the first model has right, then as many of the second."""
    half = (count + 1) // 2
    kept: dict[bool, list[Disagreement]] = {True: [], False: []}
    one = next(iter(models.values()))
    names, look = one.class_names, one.preprocess
    data = Readable(shift.load(look), look, "wrong")
    paths = data.paths() if data.files is not None else []
    for index, image, label, hits in _differing(models, shift, data, limit, batch_size):
        kind = kept[hits[0]]
        if len(kind) < half:
            first, second = (
                _answer(*model, shift, image, label, explainer) for model in models.items()
            )
            name = " / ".join(names[k] for k in _accepted(shift, label))
            file = Path(paths[index]).name if paths else ""
            kind.append(Disagreement(shift.name, index, name, image, first, second, file))
        if all(len(kind) == half for kind in kept.values()):
            break
    return (kept[True] + kept[False])[:count]


@torch.no_grad()
def _differing(
    models: Mapping[str, Classifier], shift: Shift, data: Readable, limit: int, batch_size: int
) -> Iterator[tuple[int, Tensor, int, list[bool]]]:
    """Index, image, label and who is right, of images that one of the two has right."""
    seed = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data), generator=seed)[:limit].tolist()
    start = 0
    for images, labels, readable in DataLoader(Subset(data, order), batch_size):
        answers = [_judged(model, images, labels, shift) for model in models.values()]
        hits = torch.stack([answer.correct for answer in answers])
        for i in ((hits[0] != hits[1]) & readable).nonzero().flatten().tolist():
            yield order[start + i], images[i], int(labels[i]), hits[:, i].tolist()
        start += len(labels)


@torch.no_grad()
def _judged(model: Classifier, images: Tensor, labels: Tensor, shift: Shift) -> Answers:
    logits = model(_batch(model, images))
    return LabelRule(logits.shape[1], shift.classes, shift.accepts).judge(logits, labels)


def _batch(model: Classifier, images: Tensor) -> Tensor:
    """Images uint8 (B, 3, H, W) as floats on the model's device."""
    return to_unit(images.to(next(model.parameters()).device))


def _answer(
    name: str,
    model: Classifier,
    shift: Shift,
    image: Tensor,
    label: int,
    explainer: Explainer | None,
) -> Answer:
    """The answer to one image, with the relevance of the likeliest accepted class."""
    images = image.unsqueeze(0)
    said = _judged(model, images, torch.tensor([label]), shift)
    assert said.confidence is not None
    batch, accepted = _batch(model, images), _accepted(shift, label)
    relevance, words = _explained(model, batch, accepted, explainer)
    return Answer(
        model=name,
        name=model.class_names[int(said.best[0, 0])],
        confidence=float(said.confidence[0]),
        right=bool(said.correct[0]),
        relevance=relevance,
        explainer=words,
    )


def _explained(
    model: Classifier, batch: Tensor, accepted: Sequence[int], explainer: Explainer | None
) -> tuple[Tensor | None, str]:
    """Relevance (h, w) of the likeliest accepted class, None if there is none; what made it."""
    with torch.no_grad():
        logits = model(batch)[0]
    label = torch.tensor([max(accepted, key=lambda k: float(logits[k]))], device=batch.device)
    usual, reason, ways = default_relevance(model), "", []
    if isinstance(explainer, Relevance):
        ways.append((explainer, f"{_words(explainer)}, as the run has it"))
        reason = f", because {_words(explainer)} of the run has no map"
    elif explainer is not None:
        reason = f", because that of the run cannot be made here ({explainer})"
    ways.append((usual, f"{_words(usual)}, the default of its architecture{reason}"))
    for way, words in ways:
        # An encoder may have nothing that a relevance reads.
        with contextlib.suppress(InputError):
            return way.explain(model, batch, label)[1][0].detach().float().cpu(), words
    return None, ""


def _words(relevance: Relevance) -> str:
    """The class of a relevance with its plain settings."""
    kept = {k: v for k, v in vars(relevance).items() if k[0] != "_" and v}
    plain = {k: v for k, v in kept.items() if isinstance(v, str | int | float | dict)}
    return f"{type(relevance).__name__}({', '.join(f'{k}={v}' for k, v in plain.items())})"


def _accepted(shift: Shift, label: int) -> tuple[int, ...]:
    return (label,) if shift.accepts is None else tuple(shift.accepts[label])
