"""Checkpoint: one safetensors file that rebuilds its classifier, and weight interpolation.

The file's metadata holds the classifier's spec as JSON, so that loading needs no download, no
method, no teacher and no pickle.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError, one_line
from cfmask.files import write_whole
from cfmask.spec import Spec
from cfmask.trust import find_class, is_own, reading
from cfmask.weights import (
    load_weights,
    parsed,
    read_checkpoint,
    read_header,
    read_tensors,
    tensors_of,
)

WEIGHTS = "weights.safetensors"
PRETRAINED = "pretrained.safetensors"
AVERAGE = "average.safetensors"


def save_classifier(
    classifier: Classifier,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights and spec to one safetensors file; an older file is replaced only when done.

    Args:
        classifier: what to write.
        path: the file.
        metadata: further texts for the file's header, by name.

    Raises:
        InputError: a class that no import path leads to, options of its spec that are not JSON, or
            a file that cannot be written, as on a full disk.

    Examples:
        >>> net = cfmask.TimmClassifier("test_resnet", False, ["ant", "bee"], image_size=96)
        >>> cfmask.save_classifier(net, "ants.safetensors")
        >>> cfmask.load_classifier("ants.safetensors").class_names
        ('ant', 'bee')
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}
    texts = {**(metadata or {}), "classifier": json.dumps(plain_spec(classifier))}
    write_whole(Path(path), lambda partial: save_file(tensors, partial, texts))


def plain_spec(classifier: Classifier) -> dict[str, Any]:
    """The spec of a classifier as a file holds it.

    Raises:
        InputError: a class that no import path leads to, or options that are not plain JSON.
    """
    name, spec = classifier.spec.class_path, classifier.spec.plain()
    if "<locals>" in name or find_class(name, Classifier, Path("this program")) is not type(
        classifier
    ):
        raise InputError(
            f"Expected a classifier of a class at the top of a module, so that a file can name it, "
            f"but {name} leads to none or another; move the class."
        )
    try:
        same = json.loads(json.dumps(spec, allow_nan=False)) == spec
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise InputError(
            f"Expected options of strings, numbers, lists and dicts in the spec of {name}, but got "
            f"{classifier.spec.options!r:.200}."
        )
    return spec


def check_comes_back(classifier: Classifier) -> None:
    """Make sure, before training, that a classifier can be saved and loaded.

    Raises:
        InputError: it would not, or not with the same logits.
    """
    plain = plain_spec(classifier)
    # Of this package's classes, only one that wraps a user's own module runs code of others.
    if is_own(classifier.spec.class_path) and "module" not in classifier.spec.options:
        return
    again = rebuilt(plain, Path("this program"))
    try:
        again.load_state_dict(classifier.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"Expected {classifier.spec.class_path}.from_spec to build all parts that __init__ "
            f"builds, but: {one_line(error)}."
        ) from error
    image = torch.rand(1, 3, *classifier.image_size, generator=torch.Generator().manual_seed(0))
    was_training = classifier.training
    with torch.no_grad():
        expected, got = classifier.eval()(image), again.eval()(image)
    classifier.train(was_training)
    if not torch.allclose(expected, got, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"Expected {classifier.spec.class_path}.from_spec to give the same classifier again, "
            f"but its logits differ by {float((expected - got).abs().max()):.2g}; let it set all "
            "that __init__ sets."
        )


def load_classifier(
    path: str | os.PathLike[str], weights: str = WEIGHTS, trust: bool = False
) -> Classifier:
    """Rebuild a classifier from a run folder, a .safetensors file or a training checkpoint.

    The file is data: nothing in it is executed, no network is asked. A classifier of a class of
    one's own comes back as that class if the process has imported it.

    Args:
        path: run folder, or file.
        weights: which file of a run folder: `weights.safetensors` (tuned) or
            `pretrained.safetensors` (the starting point).
        trust: import the class that the file names, if it is not imported yet.

    Returns:
        The classifier on the CPU, in eval mode.

    Raises:
        InputError: nothing there, a truncated or foreign file, a pickle that is not plain weights,
            a class that may not be imported, weights that do not fit or are no numbers.
    """
    file = Path(path) / weights if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"Expected a run folder or a weights file, but {file} does not exist.")
    if file.suffix == ".ckpt":
        checkpoint = read_checkpoint(file)
        plain, tensors = checkpoint.get("classifier"), _of_classifier(checkpoint)
    else:
        text = read_header(file).get("classifier", "null")
        plain, tensors = parsed(text, file), read_tensors(file)
    if plain is None:
        raise InputError(f"Expected a file that names its classifier, but {file} does not.")
    classifier = rebuilt(plain, file, trust)
    load_weights(classifier, tensors, file)
    return classifier.eval()


def start_from(path: str, class_names: Sequence[str] = (), trust: bool = False) -> Classifier:
    """A classifier of a run or file as the starting point of another run.

    Args:
        path: run folder, whose tuned weights are taken, .safetensors or .ckpt file.
        class_names: K names, in the order of the labels; the commands take them from the data.
            With other names than its own the classifier gets a fresh linear head.
        trust: see `load_classifier`.

    Raises:
        InputError: see `load_classifier`.
    """
    classifier = load_classifier(path, trust=trust)
    names = tuple(class_names) or classifier.class_names
    if names == classifier.class_names:
        return classifier
    spec = replace(classifier.spec, class_names=names, head="linear", head_from="chance")
    fresh = type(classifier).from_spec(spec)
    fresh.encoder.load_state_dict(classifier.encoder.state_dict())
    return fresh.eval()


def rebuilt(plain: Any, source: Path, trust: bool = False) -> Classifier:
    """A classifier by its plain spec; its weights are still to be loaded.

    Args:
        plain: see `Spec.of`.
        source: where it stands, for messages.
        trust: see `load_classifier`.

    Raises:
        InputError: see `load_classifier`.
    """
    try:
        spec = Spec.of(plain)
        family: Any = find_class(spec.class_path, Classifier, source, trust)
        with reading(source, trust):
            classifier: Classifier = family.from_spec(spec)
    except InputError as error:
        at = "" if str(source) in str(error) else f" It stands in {source}."
        raise InputError(f"{error}{at}") from error
    return classifier


def _of_classifier(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The classifier's tensors in the state of a method."""
    state, prefix = checkpoint.get("state_dict"), "classifier."
    held = tensors_of(state if isinstance(state, dict) else {})
    return {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}


def interpolate(start: Classifier, tuned: Classifier, alpha: float) -> Classifier:
    """WiSE-FT: a classifier with the weights (1 - alpha) · start + alpha · tuned, head included.

    Args:
        start: the starting point of the tuning.
        tuned: a classifier of the same architecture.
        alpha: in [0, 1]; 0 gives `start` and 1 `tuned`, exactly.

    Raises:
        InputError: alpha outside [0, 1], or two architectures.

    Source: Wortsman et al. 2022 (arXiv 2109.01903).

    Examples:
        >>> def made():
        ...     net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
        ...     return cfmask.ModuleClassifier(net, class_names=["ant", "bee"], image_size=1)
        >>> a, b = made(), made()
        >>> between = cfmask.interpolate(a, b, 0.5)
        >>> torch.allclose(between.head.weight, (a.head.weight + b.head.weight) / 2)
        True
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"Expected alpha in [0, 1], but got {alpha}.")
    check_alike(start, tuned)
    old, new = start.state_dict(), tuned.state_dict()
    mixed = copy.deepcopy(tuned)
    mixed.load_state_dict(
        {k: torch.lerp(old[k], v, alpha) if v.is_floating_point() else v for k, v in new.items()}
    )
    return mixed


def average(classifiers: Sequence[Classifier]) -> Classifier:
    """Uniform soup: a classifier whose weights are the mean of the others', head included.

    What is no float (batch norm's count of batches) is the first one's.

    Args:
        classifiers: at least one; all tuned from one starting point, or the mean is of no use.

    Raises:
        InputError: none, or two architectures.

    Source: Wortsman et al. 2022 (arXiv 2203.05482), "uniform soup".
    """
    if not classifiers:
        raise InputError("Expected at least one classifier to average, but got none.")
    first = classifiers[0]
    for other in classifiers[1:]:
        check_alike(first, other)
    states = [classifier.state_dict() for classifier in classifiers]
    mean = copy.deepcopy(first)
    mean.load_state_dict({k: _mean([state[k] for state in states]) for k in states[0]})
    return mean


def _mean(values: list[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def check_alike(one: Classifier, other: Classifier) -> None:
    """Raise an InputError unless a mean of the weights of both makes sense."""
    if _alike(one) != _alike(other):
        raise InputError(
            f"Expected two classifiers of one architecture and the same classes, but got "
            f"{one.name} and {other.name} with another tower, head or class list."
        )


def _alike(classifier: Classifier) -> list[Any]:
    """What two classifiers must share for the mean of their weights to make sense."""
    spec = classifier.spec
    shapes = {name: value.shape for name, value in classifier.state_dict().items()}
    what = [spec.class_path, spec.head, spec.class_names, spec.mean, spec.std]
    return [shapes, *what, spec.options.get("config")]
