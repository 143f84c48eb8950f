from __future__ import annotations

from pathlib import Path

import pytest
import torch
from imagenet_trees import ORIGINS, plant_one

from cfmask import OpenClipClassifier, TimmClassifier, digits

# On shared cores, threads that wait for each other make tiny models many times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _tiny_clip() -> OpenClipClassifier:
    return OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)


@pytest.fixture
def tiny_clip(_tiny_clip: OpenClipClassifier) -> OpenClipClassifier:
    """The shipped CLIP with its zero-shot head, a fresh copy for every test."""
    import copy

    return copy.deepcopy(_tiny_clip)


@pytest.fixture
def small_cnn() -> TimmClassifier:
    """A random CNN whose batch norm has statistics that matter."""
    torch.manual_seed(0)
    classifier = TimmClassifier("test_resnet", False, ["a", "b", "c"], image_size=96)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return classifier


@pytest.fixture
def digit_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images float (8, 3, 48, 48) in [0, 1] and their labels."""
    drawn = digits.digit_set("id", 8, seed=0)
    return drawn.images.float() / 255, drawn.labels


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """All sets, a few pictures each. Tests only read them."""
    root = tmp_path_factory.mktemp("data")
    for name in ORIGINS:
        plant_one(root, name)
    return root


@pytest.fixture(scope="session")
def class_photos(tmp_path_factory) -> Path:
    """A folder of images of four classes. Tests only read them."""
    from shard_trees import plant_photos

    return plant_photos(tmp_path_factory.mktemp("photos") / "train")


@pytest.fixture(scope="session")
def packed(class_photos, tmp_path_factory) -> Path:
    """These in shards of six. Tests only read them."""
    from cfmask.data.packing import pack

    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(class_photos, out, shard_size=6)
    return out
