from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

# The asserts of what is imported next say what they compared.
pytest.register_assert_rewrite("support")

from support.any_models import NAMES
from support.imagenet_trees import ORIGINS, plant_one

from cfmask import OpenClipClassifier, TimmClassifier, digits
from cfmask.reporting import svg

# On shared cores, threads that wait for each other make tiny models many times slower.
torch.set_num_threads(1)


# A job in the background ignores what is sent to it from the terminal, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Undrawn(Figure):
    """A figure with all that is put on its axes, which saves as an empty picture."""

    def savefig(self, fname, **_) -> None:
        fname.write('<svg viewBox="0 0 1 1"></svg>')


def pytest_collectstart() -> None:
    # Parameters that a test module draws when it is imported.
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # What a test draws does not depend on those before it, nor on the process that runs it.
    torch.manual_seed(0)
    # To draw a page's charts takes as long as the tiny trainings that they are of.
    svg.Figure = Figure if item.get_closest_marker("drawn") else Undrawn
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No charts are drawn, other than by fixtures of a module."""
    monkeypatch.setattr(svg, "Figure", Undrawn)


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
    from support.shard_trees import plant_photos

    return plant_photos(tmp_path_factory.mktemp("photos") / "train")


@pytest.fixture(scope="session")
def packed(class_photos, tmp_path_factory) -> Path:
    """These in shards of six. Tests only read them."""
    from cfmask.data.packing import pack

    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(class_photos, out, shard_size=6)
    return out


@pytest.fixture
def one_megabyte():
    """Files cannot become larger, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two sets of noise, of 7 and 4 pictures of several sizes."""
    root, rng = tmp_path_factory.mktemp("trees"), np.random.default_rng(0)
    for name, count in (("id", 7), ("sketch", 4)):
        for k in range(count):
            folder = root / name / NAMES[k % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20 + k, 30 - k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
    return root
