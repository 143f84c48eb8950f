"""Mixed statistics of batch norms at test time, beside the plain models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from support.evaluation import CLASSES, SIDE, Sees, in_processes, linear, random_images
from support.training import photos
from torch import nn

from cfmask import InputError, ShiftReport, TimmClassifier
from cfmask import processes as own_processes
from cfmask.checkpoint import WEIGHTS, save_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.compare import check_run
from cfmask.evaluation.metrics import Metric
from cfmask.inference.batch_statistics import Adapted, Shuffle, mixed
from cfmask.inference.inference import Inference
from cfmask.inference.settings import Settings
from cfmask.inference.wise import Blend, WeightLine
from cfmask.runs.run_folder import RunFolder
from cfmask.shift import Shift
from cfmask.views.view import View

COUNT, MOST = 53, 10


def network(seed: int = 0) -> Sees:
    """Convolution, batch norm with statistics of its own, pooling, linear head."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(6)
    parts = nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24, CLASSES)
    for value in (norm.weight, norm.running_mean, norm.running_var):
        nn.init.uniform_(value, 0.2, 2)
    return Sees(nn.Sequential(*parts))


def shift(count: int = COUNT) -> Shift:
    return Shift("x", lambda look: random_images(count, 3), True)


def answered(models, store: Path | None = None, count: int = COUNT, batch_size: int = 7):
    found = Inference(models, Settings(batch_size=batch_size, store=store)).answer([shift(count)])
    return {name: sets["x"] for name, sets in found.items()}


def by_hand(model: Sees, images: torch.Tensor, alpha: float) -> torch.Tensor:
    """Logits, with the formula written out."""
    conv, norm, *rest = model.encoder
    values = conv((images - model.mean) / model.std)
    flat = values.transpose(0, 1).flatten(1)
    mean = alpha * norm.running_mean + (1 - alpha) * flat.mean(1)
    var = alpha * norm.running_var + (1 - alpha) * (flat - flat.mean(1)[:, None]).square().mean(1)
    values = (values - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    values = values * norm.weight[:, None, None] + norm.bias[:, None, None]
    return nn.Sequential(*rest)(values)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_alpha_one_is_the_plain_model_and_alpha_zero_is_train_mode(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(model.state_dict())
    images = torch.rand(6, 3, 64, 64)
    plain = model(images)
    with mixed(model, 1):
        assert torch.equal(model(images), plain)
    with mixed(model, 0):
        batch = model(images)
    trained = copy.deepcopy(model)
    for norm in (m for m in trained.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train()
    torch.testing.assert_close(batch, trained(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(batch, plain, atol=1e-3)
    assert torch.equal(model(images), plain)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@torch.no_grad()
def test_statistics_come_back_after_an_error():
    model = network()
    images = torch.rand(4, 3, SIDE, SIDE)
    plain = model(images)
    with pytest.raises(RuntimeError), mixed(model, 0.5):
        model(images)
        raise RuntimeError
    assert torch.equal(model(images), plain)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_answers_are_those_of_the_shuffled_batches_in_the_order_of_the_set(alpha):
    model, data = network(), random_images(COUNT, 3)
    found = answered({"plain": model, "mixed": Adapted(model, alpha, Shuffle(MOST, 5))})
    images = data.images.float() / 255
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(5))
    expected = torch.empty(COUNT, CLASSES)
    for batch in order.tensor_split(6):
        expected[batch] = by_hand(model, images[batch], alpha)
    nll = F.cross_entropy(expected, data.labels, reduction="none")
    torch.testing.assert_close(found["mixed"].nll, nll, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["mixed"].labels, data.labels)
    nll = F.cross_entropy(by_hand(model, images, 1), data.labels, reduction="none")
    torch.testing.assert_close(found["plain"].nll, nll, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_answers(tmp_path, count):
    models = {"mixed": Adapted(network(), 0.2, Shuffle(MOST, 0))}
    # Two images are one batch: fewer batches than processes.
    alone = {n: answered(models, count=n)["mixed"].nll.tolist() for n in (COUNT, 2)}

    def make(path: Path) -> None:
        assert own_processes.count() == count
        found = {n: answered(models, count=n)["mixed"].nll.tolist() for n in (COUNT, 2)}
        path.write_text(json.dumps(list(found.values())))

    in_processes(count, tmp_path / "out", make)
    for rank in range(count):
        assert json.loads((tmp_path / "out" / f"{rank}.json").read_text()) == list(alone.values())


class Faint(View):
    """Halves an image, and keeps its number and its first logit."""

    columns: ClassVar = {name: Metric(name, unit="") for name in ("number", "logit")}

    def versions(self, images, numbers):
        self.numbers = torch.tensor(numbers).float()
        yield images / 2

    def measure(self, plain, versions):
        return {"number": self.numbers, "logit": versions[0].logits[:, 0]}


@torch.no_grad()
def test_views_have_the_statistics_of_their_batch_and_are_in_the_order_of_the_set():
    model = network()
    settings = Settings(7, views={"faint": Faint()})
    models = {"mixed": Adapted(model, 0.3, Shuffle(MOST, 5))}
    views = Inference(models, settings).answer([shift()])["mixed"]["x"].views
    assert views["faint/number"].tolist() == list(range(COUNT))
    images = random_images(COUNT, 3).images.float() / 510
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(5))
    for batch in order.tensor_split(6):
        expected = by_hand(model, images[batch], 0.3)[:, 0]
        torch.testing.assert_close(views["faint/logit"][batch], expected, rtol=1e-4, atol=1e-5)


def test_kept_answers_are_told_apart_by_alpha_batches_and_seed(tmp_path):
    model = network()
    kinds = {
        "plain": model,
        "0.5": Adapted(model, 0.5, Shuffle(MOST, 0)),
        "1": Adapted(model, 1.0, Shuffle(MOST, 0)),
        "batch": Adapted(model, 0.5, Shuffle(MOST + 1, 0)),
        "seed": Adapted(model, 0.5, Shuffle(MOST, 1)),
    }
    for k, (name, kind) in enumerate(kinds.items(), 1):
        first = answered({"m": kind}, tmp_path)["m"]
        assert len(list(tmp_path.glob("*.safetensors"))) == k, name
        assert torch.equal(answered({"m": kind}, tmp_path)["m"].nll, first.nll)
        assert len(list(tmp_path.glob("*.safetensors"))) == k, name


def test_a_point_of_a_line_has_the_statistics_of_that_point():
    line = WeightLine(network(0), network(1))
    shuffle = Shuffle(MOST, 0)
    models = {str(a): Adapted(Blend(line, a), 0.4, shuffle) for a in (0.25, 0.75)}
    found = answered(models)
    for name, adapted in models.items():
        own = copy.deepcopy(adapted.model.classifier())
        expected = answered({"m": Adapted(own, 0.4, shuffle)})["m"]
        assert torch.equal(found[name].nll, expected.nll)


@pytest.mark.slow
def test_the_command_adds_a_row_for_each_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    names = sorted(p.name for p in (tmp_path / "photos/train").iterdir())
    classifier = TimmClassifier("test_resnet", False, names, image_size=64)
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").start("evaluation: {}\n", classifier)
    save_classifier(classifier, tmp_path / "run" / WEIGHTS)
    args = "run --shifts folders --data_root photos --out out --pictures 0 --wise 0.5"
    evaluate_run([*args.split(), "--batch_statistics", "0.9", "--batch_size", "5"])
    report = ShiftReport.load(tmp_path / "out" / "report.json")
    plain = ["pretrained", "tuned", "WiSE-FT 0.5"]
    assert set(report.models[:3]) == set(plain)
    assert report.models[3:] == [f"{name} + batch statistics 0.9" for name in plain]
    told = report.protocol["models"]["tuned + batch statistics 0.9"]["batch_statistics"]
    assert told == (
        "0.9 stored, 0.1 of batches of at most 5 images of one set, in an order drawn with seed 0"
    )
    assert "batch_statistics" not in report.protocol["models"]["tuned"]
    pairs = {(d.first, d.second) for d in report.differences}
    assert {frozenset(p) for p in pairs} >= {
        frozenset((m, f"{m} + batch statistics 0.9")) for m in plain
    }
    assert "batch statistics" in capsys.readouterr().out


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_a_weight_outside_is_refused(alpha):
    with pytest.raises(InputError, match=r"batch_statistics in \[0, 1\]"):
        check_run(network(), ["digits"], None, batch_statistics=alpha)


def test_a_model_without_batch_norms_is_refused_also_before_training(tmp_path, capsys):
    with pytest.raises(InputError, match="Sequential has none"):
        check_run(linear(), ["digits"], None, batch_statistics=0.9)
    words = f"open_clip:tiny-clip --images 4 --out {tmp_path} --batch_statistics 0.9"
    with pytest.raises(SystemExit) as end:
        evaluate_run(words.split())
    assert end.value.code == 2
    assert "BatchNorm2d" in capsys.readouterr().err
