"""AnswerStore: answers kept on disk, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from cfmask.answers import Answers
from cfmask.classifier import Classifier
from cfmask.data.shifts import Shift

# Another number makes answers of older versions unused.
VERSION = 1
PROBES = 16


class AnswerStore:
    """A folder with one file for a model on a set, found by all that the answers depend on.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, model: str, shift: str, key: str) -> Path:
        """The file of a model on a set under a key."""
        name = re.sub(r"[^\w.=+-]+", "_", f"{shift}--{model}")[:120]
        return self.folder / f"{name}--{key[:16]}.safetensors"

    def load(self, path: Path) -> Answers | None:
        """Answers of a file; None if it is not there or broken."""
        try:
            tensors = load_file(path)
            return Answers(**tensors)
        except (OSError, SafetensorError, TypeError):
            return None

    def save(self, path: Path, answers: Answers) -> None:
        """Write a file; it has its name only when it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        save_file({k: v.contiguous() for k, v in answers.tensors().items()}, partial)
        partial.chmod(0o644)
        partial.replace(path)


def key_of(*parts: str) -> str:
    """One key of several."""
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def model_key(model: Classifier) -> str:
    """Key of a classifier: its spec and the bytes of all its weights."""
    digest = hashlib.sha256(json.dumps(model.spec, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def set_key(shift: Shift, data: Dataset[Any]) -> str:
    """Key of a set: its rule, the path, size and time of change of every file, and 16 images.

    The images, spread over the set, stand for how files are decoded and for sets without files.
    """
    rule = [(field.name, getattr(shift, field.name)) for field in fields(shift)]
    known = repr([(name, value) for name, value in rule if name != "load"])
    digest = hashlib.sha256(known.encode())
    for path in files_of(data):
        state = Path(path).stat()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}".encode())
    for index in _spread(len(data)):  # type: ignore[arg-type]
        image, label = data[index]
        digest.update(f"{index} {int(label)} {tuple(image.shape)}".encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def files_of(data: Any) -> list[str]:
    """Paths of the images of a set, in its order; none if they are not files."""
    samples: Iterable[Any] = getattr(data, "samples", [])
    return [str(sample[0]) for sample in samples]


def _spread(length: int) -> Iterator[int]:
    count = min(PROBES, length)
    return (i * (length - 1) // max(1, count - 1) for i in range(count))
