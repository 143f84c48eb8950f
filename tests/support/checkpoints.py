"""Weights files, good and evil."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from pathlib import Path

import torch

from cfmask import Classifier, Distillation, OpenClipClassifier, TimmClassifier

NAMES = ["ant", "bee", "cat"]


TEMPLATES = ["a {}", "the {}, drawn"]


def clip_folder(path: Path, width: int = 32, **options) -> str:
    """A folder in open_clip's local layout, with a configuration and no weights."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 16,
            "layers": 2,
            "width": width,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 1,
            "layers": 1,
        },
        **options,
    }
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}
    path.mkdir()
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (path / "open_clip_config.json").write_text(text)
    return str(path)


def clip(path: Path, head: str = "zero_shot", **options) -> OpenClipClassifier:
    torch.manual_seed(1)
    return OpenClipClassifier(clip_folder(path, **options), None, NAMES, TEMPLATES, head)


@cache
def _timm(model: str, image_size: int | None) -> TimmClassifier:
    torch.manual_seed(1)
    return TimmClassifier(model, False, NAMES, image_size=image_size)


def timm(model: str = "test_vit", image_size: int | None = None) -> TimmClassifier:
    return copy.deepcopy(_timm(model, image_size))


def training_checkpoint(path: Path, classifier: Classifier) -> Path:
    """What Lightning writes of a method that has a teacher."""
    method = Distillation(classifier)
    checkpoint = {"epoch": 1, "state_dict": method.state_dict(), "optimizer_states": [{}]}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
