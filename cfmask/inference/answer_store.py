"""AnswerStore: answers on disk, by which an interrupted evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.evaluation.answers import Answers
from cfmask.files import write_whole
from cfmask.inference.readable import Readable
from cfmask.shift import Shift

# Part of every key: a new number makes answers of older versions invalid.
VERSION = 3
PROBES = 16
# Length of what the key gives the name of a file.
ENDING = 16 + len(".safetensors")
# Fields of a set on which its answers do not depend.
UNRELATED = (
    *("load", "missing", "source", "licence", "part_of", "unknown", "ladder"),
    *("groups", "group_names", "training_shares", "absent"),
)


class AnswerStore:
    """A folder with one file for each model and set, found by all that the answers depend on.

    Args:
        folder: is made when the first file is written.
        others: folders of other reports, which are read alone.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.others = others

    def find(self, path: Path, key: str) -> Answers | None:
        """Answers of a file, or of one of another report under the same key; None if none."""
        # There the model may have another name.
        ending = path.name[-ENDING:]
        alike = (file for folder in self.others for file in folder.glob(f"*--{ending}"))
        found = (self.load(file, key) for file in chain([path], alike))
        return next((answers for answers in found if answers is not None), None)

    def path(self, model: str, shift: str, key: str) -> Path:
        """The file of a model on a set under a key."""
        return self.folder / f"{file_name(model, shift)}--{key[:16]}.safetensors"

    def load(self, path: Path, key: str) -> Answers | None:
        """Answers of a file; None if it is not there, damaged, or of another key."""
        # Reading a pipe would block.
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                if facts.get("key") != key:
                    return None
            tensors = load_file(path)
        except (OSError, SafetensorError):
            return None
        sound = facts.get("checksum") == checksum(tensors, key)
        return Answers.of_tensors(tensors) if sound else None

    def save(self, path: Path, answers: Answers, key: str) -> None:
        """Write a file, whole or not at all."""
        tensors = {name: value.contiguous() for name, value in answers.tensors().items()}
        facts = {"key": key, "checksum": checksum(tensors, key)}
        write_whole(path, lambda file: save_file(tensors, file, facts))


def checksum(tensors: Mapping[str, Tensor], key: str) -> str:
    """SHA-256 of answers and their key."""
    return _digest(tensors, key)


def file_name(model: str, shift: str) -> str:
    """The beginning of a file's name, unique for a model and a set.

    It keeps the characters that every file system allows; a hash at its end stands for the others.
    """
    plain = re.sub(r"[^\w.=+-]+", "_", f"{shift}--{model}").encode()[:120].decode(errors="ignore")
    return f"{plain}--{key_of(shift, model)[:8]}"


def key_of(*parts: str) -> str:
    """One key made of several."""
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def model_key(model: Classifier) -> str:
    """Key of a classifier: its class, its spec and the bytes of all its weights."""
    text = json.dumps(model.spec.plain(), sort_keys=True)
    return _digest(model.state_dict(), text)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of a text, and of names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def set_key(shift: Shift, data: Readable) -> str:
    """Key of a set: its rule, its labels, and its images.

    For image files and shards that is path, size and time of change of each, and the pixels of 16
    images spread over the set, which tell a change of decoding; for other images the pixels of all.
    """
    rule = {field.name: getattr(shift, field.name) for field in fields(Shift)}
    known = {name: value for name, value in rule.items() if name not in UNRELATED}
    digest = hashlib.sha256(repr((known, data.unreadable)).encode())
    length = len(data)
    files = data.paths() if data.files is not None else getattr(data.data, "shard_files", [])
    for path in files:
        state = Path(path).stat() if Path(path).is_file() else None
        facts = (state.st_size, state.st_mtime_ns) if state else ()
        digest.update(repr((path, facts)).encode())
    count = min(PROBES, length) if files else length
    for i in range(count):
        image, label, _ = data[i * (length - 1) // max(1, count - 1)]
        digest.update(repr((i, label, tuple(image.shape))).encode())
        digest.update(image.contiguous().numpy().data)
    if files:
        digest.update(repr([data.label(i) for i in range(length)]).encode())
    return digest.hexdigest()
