"""Any nn.Module as a classifier."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import nn

from cfmask import (
    Counterfactual,
    GradCAM,
    InputError,
    MaskedDistillation,
    ModuleClassifier,
    NoFill,
    ObjectMask,
    load_classifier,
    save_classifier,
)

NAMES = ["a", "b", "c"]
SOURCE = """
import torch
from torch import nn

class MyNet(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        return self.last(self.pool(self.body(x)).flatten(1))

def scaled():
    return nn.Sequential(MyNet(), nn.Softplus())
"""


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def test_its_logits_are_those_of_the_module_on_normalised_images():
    net = torchvision.models.resnet18(num_classes=3).eval()
    classifier = ModuleClassifier(net, class_names=NAMES, image_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (net_mean(), net_std()))
    assert torch.allclose(classifier(images), net((images - mean) / std), atol=1e-5)
    assert classifier.features(images).shape == (2, 512)
    assert classifier.feature_map.split(".")[0] == "layer4"
    assert classifier.grid == (2, 2)


def net_mean():
    return (0.485, 0.456, 0.406)


def net_std():
    return (0.229, 0.224, 0.225)


def test_one_of_ones_own_trains_with_every_part_and_comes_back(my_module, tmp_path):
    classifier = ModuleClassifier(
        f"{my_module}.MyNet", {"width": 6}, NAMES, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert (classifier.feature_map, classifier.grid) == ("body", (4, 4))
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    _, maps = GradCAM().explain(classifier, images, labels)
    assert maps.shape == (4, 4, 4)
    method = MaskedDistillation(classifier, Counterfactual(ObjectMask(0.3), NoFill()))
    losses = method.losses(images, labels)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in classifier.parameters())
    save_classifier(classifier, tmp_path / "mine.safetensors")
    again = load_classifier(tmp_path / "mine.safetensors")
    assert torch.equal(again(images), classifier.eval()(images))


def test_a_file_does_not_import_a_module_that_nobody_has(my_module, tmp_path):
    path = tmp_path / "elsewhere" / "mine.safetensors"
    path.parent.mkdir()
    save_classifier(ModuleClassifier(f"{my_module}.MyNet", None, NAMES, image_size=16), path)
    del sys.modules[my_module]
    with pytest.raises(InputError, match=r"import its module first, or give --trust true"):
        load_classifier(path)
    assert my_module not in sys.modules
    assert load_classifier(path, trust=True).class_names == tuple(NAMES)


def test_logits_that_no_linear_layer_makes_are_its_features(my_module):
    classifier = ModuleClassifier(f"{my_module}.scaled", None, NAMES, image_size=16).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(classifier.features(images), classifier(images))
    assert (classifier(images) > 0).all()
    with pytest.raises(InputError, match=r"a fresh head, but Sequential has none"):
        ModuleClassifier(f"{my_module}.scaled", None, NAMES, "linear", 16)


def test_a_fresh_head_is_one_that_nothing_has_fitted():
    net = torchvision.models.resnet18(num_classes=7)
    classifier = ModuleClassifier(net, None, NAMES, "linear", 64)
    assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    assert classifier.head_from == "chance"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Flatten(), "Expected 3 logits, one a class, but Flatten gives 768"),
        (nn.Conv2d(3, 3, 1), r"Expected Conv2d to give logits \(B, K\)"),
        ("nowhere.Net", "Cannot import nowhere.Net"),
        ("torch.nn.nothing", "Expected torch.nn.nothing to be the import path"),
        ("builtins.dict", "to make an nn.Module, but got"),
    ],
)
def test_what_is_no_classifier_is_one_line(module, said):
    with pytest.raises(InputError, match=said):
        ModuleClassifier(module, None, NAMES, image_size=16)


def test_a_wrapped_object_is_not_read_back(tmp_path):
    classifier = ModuleClassifier(
        torchvision.models.resnet18(num_classes=3), None, NAMES, image_size=64
    )
    save_classifier(classifier, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="it was wrapped as an object"):
        load_classifier(tmp_path / "x.safetensors")


def test_a_module_without_a_map_that_divides_the_image_is_refused_before_training():
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = ModuleClassifier(
        nn.Sequential(*net, nn.Linear(4, 3)), class_names=NAMES, image_size=64
    )
    with pytest.raises(InputError, match="Expected a layer whose map divides the image"):
        GradCAM().check(classifier)
    GradCAM("0").check(classifier)


class Viewed(nn.Module):
    """Flattens by `view`, as many do, which only works on maps laid out as usual."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = self.body(x)
        return self.last(x.view(len(x), 16))


def test_a_net_of_ones_own_keeps_its_layout_in_memory_and_ours_take_the_fast_one(small_cnn):
    net = Viewed().eval()
    mine = ModuleClassifier(net, class_names=NAMES, image_size=16, mean=(0,) * 3, std=(1,) * 3)
    images = torch.rand(2, 3, 16, 16)
    for classifier in (mine, small_cnn):
        classifier.suit(torch.device("cpu"))
    assert torch.equal(mine(images), net(images))
    wide = (m for m in small_cnn.encoder.modules() if getattr(m, "kernel_size", (1,))[0] > 1)
    kernel = next(wide).weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
