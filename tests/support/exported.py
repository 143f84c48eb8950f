"""Made-up runs and their exports, for the tests that read them."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import torch
import yaml

from cfmask import Classifier, OpenClipClassifier, TimmClassifier, digits, save_classifier
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.comparison.compare import compare
from cfmask.data.datamodule import digits_tensors

CONFIG = {"run": "runs/made", "seed_everything": 0, "data": {"class_path": "DigitsData"}}
MAKERS = {
    "tiny-clip": lambda: OpenClipClassifier(
        "tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES
    ),
    "test_vit": lambda: TimmClassifier("test_vit", False, digits.CLASS_NAMES, image_size=48),
    "test_resnet": lambda: TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=96),
}


FAMILY: dict[str, type[Classifier]] = {
    "tiny-clip": OpenClipClassifier,
    "test_vit": TimmClassifier,
    "test_resnet": TimmClassifier,
}


@cache
def start(model: str) -> Classifier:
    """A starting point. Nobody changes it."""
    torch.manual_seed(1)
    return MAKERS[model]().eval()


def tuned(model: str, seed: int = 0) -> Classifier:
    """The starting point with every weight and statistic moved, as tuning would.

    A linear head's bias is such that several classes win among the digits.
    """
    classifier = copy.deepcopy(start(model))
    rng = torch.Generator().manual_seed(seed)
    for value in classifier.state_dict().values():
        if value.is_floating_point():
            value.add_(0.02 * torch.rand(value.shape, generator=rng))
    if classifier.spec.head == "linear":
        with torch.no_grad():
            classifier.head.bias -= classifier(digit_images(classifier.image_size[0])).mean(0)
    return classifier


def plant_run(folder: Path, model: str, seed: int = 0, images: int = 0) -> Path:
    """A run folder of tuned weights, with a report of so many images a set."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    counts = {"train_images": 48, "val_images": 20, "classes": 10, "steps": 6, "batch": 16}
    (folder / "summary.json").write_text(json.dumps({"method": "FineTuning", **counts}))
    save_classifier(start(model), folder / PRETRAINED)
    save_classifier(tuned(model, seed), folder / WEIGHTS)
    if images:
        compare([str(folder)], shifts=["digits"], images=images)
    return folder


@cache
def digit_images(size: int, count: int = 16) -> torch.Tensor:
    """Real handwritten digits float (count, 3, size, size) in [0, 1]."""
    return digits_tensors("id", count, 0, (size, size)).images.float() / 255
