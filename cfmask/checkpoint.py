"""Checkpoint: one safetensors file that rebuilds its classifier, and weight interpolation.

The file's metadata holds the classifier's spec as JSON, so that loading needs no download, no
method, no teacher and no pickle.
"""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.files import write_whole

WEIGHTS = "weights.safetensors"
PRETRAINED = "pretrained.safetensors"
# What two classifiers must share for the mean of their weights to make sense.
ALIKE = ("family", "config", "head", "class_names", "mean", "std")


def save_classifier(
    classifier: Classifier, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights and spec to one safetensors file; an older file is replaced only when done.

    Args:
        classifier: what to write.
        path: the file.
        metadata: further texts for the file's header, by name.

    Raises:
        InputError: it cannot be written, as on a full disk.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}
    texts = {**(metadata or {}), "classifier": json.dumps(classifier.spec)}
    write_whole(path, lambda partial: save_file(tensors, partial, texts))


def load_classifier(path: str | Path, weights: str = WEIGHTS) -> Classifier:
    """Rebuild a classifier from a run folder, a .safetensors file or a training checkpoint.

    Args:
        path: run folder, or file.
        weights: which file of a run folder: `weights.safetensors` (tuned) or
            `pretrained.safetensors` (the starting point).

    Returns:
        The classifier on the CPU, in eval mode.

    Raises:
        InputError: nothing there, a truncated or foreign file, a pickle that is not plain weights.
    """
    file = Path(path) / weights if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"Expected a run folder or a weights file, but {file} does not exist.")
    if file.suffix == ".ckpt":
        checkpoint = read_checkpoint(file)
        spec = checkpoint.get("classifier")
        state = checkpoint.get("state_dict", {})
        prefix = "classifier."
        tensors = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    else:
        spec, tensors = _read_spec(file), read_tensors(file)
    if not spec:
        raise InputError(f"Expected a file that names its classifier, but {file} does not.")
    try:
        classifier = Classifier.rebuild(spec)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"Expected a whole classifier spec, but {file} has none.") from error
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"Expected the weights of {classifier.name} in {file}: {line}") from error
    return classifier.eval()


def interpolate(start: Classifier, tuned: Classifier, alpha: float) -> Classifier:
    """WiSE-FT: a classifier with the weights (1 - alpha) · start + alpha · tuned, head included.

    Args:
        start: the starting point of the tuning.
        tuned: a classifier of the same architecture.
        alpha: in [0, 1]; 0 gives `start` and 1 `tuned`, exactly.

    Raises:
        InputError: alpha outside [0, 1], or two architectures.

    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"Expected alpha in [0, 1], but got {alpha}.")
    _check_alike(start, tuned)
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
        _check_alike(first, other)
    states = [classifier.state_dict() for classifier in classifiers]
    mean = copy.deepcopy(first)
    mean.load_state_dict({k: _mean([state[k] for state in states]) for k in states[0]})
    return mean


def _mean(values: list[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def _check_alike(one: Classifier, other: Classifier) -> None:
    """Raise an InputError unless a mean of the weights of both makes sense."""
    first, second = (
        [{k: v.shape for k, v in c.state_dict().items()}, *(c.spec.get(key) for key in ALIKE)]
        for c in (one, other)
    )
    if first != second:
        raise InputError(
            f"Expected two classifiers of one architecture and the same classes, but got "
            f"{one.name} and {other.name} with another tower, head or class list."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of a plain torch file, on the CPU.

    Raises:
        InputError: truncated, not weights, or a pickle that would execute code.
    """
    if path.suffix != ".safetensors":
        return {k: v for k, v in read_checkpoint(path).items() if isinstance(v, Tensor)}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"Cannot read weights from {path}: {error}. Is it truncated?") from error


def _read_spec(path: Path) -> Any:
    if path.suffix != ".safetensors":
        raise InputError(f"Expected a .safetensors or .ckpt file, but got {path}.")
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("classifier", "null"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"Cannot read weights from {path}: {error}. Is it truncated?") from error


def read_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The dictionary of a torch file, tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors on the disk until they are read.

    Raises:
        InputError: truncated, no dictionary, or a pickle that would execute code.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=mapped
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"Refused {path}: it is a pickle that holds more than weights and could execute code; "
            "save its state_dict alone."
        ) from error
    # Broken files make torch raise errors of any kind.
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"Cannot read weights from {path}: {line}. Is it truncated?") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"Expected a dictionary of weights in {path}, but got {type(checkpoint)}.")
    return checkpoint


def damage(path: Path) -> str | None:
    """What is wrong with a torch file by the checksums (CRC-32) of all its parts; None if nothing.

    Torch itself does not compare them when it reads.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    # Damaged archives make zipfile raise errors of any kind.
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return f"the checksum of {part} is wrong" if part else None
