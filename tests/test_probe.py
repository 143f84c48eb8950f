"""A head that nothing has fitted is fitted before training, once, and the run says so."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from support.mortal import train_together

from cfmask import (
    DigitsData,
    Distillation,
    FineTuning,
    InputError,
    TimmClassifier,
    digits,
    load_classifier,
    processes,
)
from cfmask.commands.train_model import command_line, train
from cfmask.heads import fit_linear_head
from cfmask.methods import Method, probing
from cfmask.methods.teacher import frozen_copy

SETTINGS = [
    "--model=Distillation", "--model.distance=logit", "--model.classifier=TimmClassifier",
    "--model.classifier.model=test_resnet", "--model.classifier.pretrained=false",
    "--model.classifier.image_size=64", "--data=DigitsData", "--data.train_images=40",
    "--data.val_images=10", "--data.batch_size=8", "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    "--evaluation.shifts=[digits/id]", "--evaluation.images=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model whose head is random."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train([f"--run={folder}", *SETTINGS])
    return folder


def accuracy(classifier):
    """On the training images of the run."""
    drawn = digits.digit_set("train", 40, seed=0)
    images = torch.nn.functional.interpolate(drawn.images, (64, 64), mode="bilinear") / 255
    with torch.no_grad():
        return (classifier(images).argmax(1) == drawn.labels).float().mean().item()


def test_a_random_head_is_fitted_by_default_and_the_summary_says_so(run):
    start = load_classifier(run, "pretrained.safetensors")
    assert start.head_from == "probe"
    assert accuracy(start) > 0.9
    said = json.loads((run / "summary.json").read_text())
    assert said["head"] == "Linear: fitted to the frozen encoder's features of the training images"
    assert load_classifier(run).head_from == "training"


def test_a_run_that_goes_on_keeps_the_head_that_it_began_with(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Method, "probe", None)
    stopped = tmp_path / "run"
    shutil.copytree(run, stopped)
    (stopped / "weights.safetensors").unlink()
    cli = command_line([f"--run={stopped}", *SETTINGS, "--resume"])
    assert not torch.equal(cli.model.classifier.head.weight, load_classifier(run).head.weight)
    cli.check()
    cli.begin()
    start = load_classifier(run, "pretrained.safetensors")
    for classifier in (cli.model.classifier, cli.model.teacher):
        assert torch.equal(classifier.head.weight, start.head.weight)
        assert classifier.head_from == "probe"


def test_the_same_command_fits_the_same_head(run, tmp_path):
    cli = command_line([f"--run={tmp_path}", *SETTINGS])
    assert cli.model.wants_probe()
    cli.model.probe(cli.datamodule)
    start = load_classifier(run, "pretrained.safetensors")
    assert torch.equal(cli.model.classifier.head.weight, start.head.weight)


def test_a_random_head_can_be_left_as_it_is(tmp_path, capsys):
    train([f"--run={tmp_path / 'run'}", *SETTINGS, "--probe=false"])
    start = load_classifier(tmp_path / "run", "pretrained.safetensors")
    assert start.head_from == "chance"
    assert "Linear: random, as nothing has fitted it" in capsys.readouterr().out


def test_heads_that_are_fitted_are_not_probed(tiny_clip, tmp_path):
    assert tiny_clip.head_from == "text"
    assert not FineTuning(tiny_clip).wants_probe()
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pt")
    names = ["a", "b", "c"]
    own = TimmClassifier("test_resnet", str(tmp_path / "w.pt"), names, head="own")
    fresh = TimmClassifier("test_resnet", str(tmp_path / "w.pt"), names)
    random = TimmClassifier("test_resnet", False, [str(k) for k in range(1000)], head="own")
    origins = [classifier.head_from for classifier in (own, fresh, random)]
    assert origins == ["weights", "chance", "chance"]
    assert [FineTuning(c).wants_probe() for c in (own, fresh, random)] == [False, True, True]


def test_a_class_of_ones_own_says_that_its_head_is_good(small_cnn):
    class Mine(TimmClassifier):
        pass

    mine = copy.deepcopy(small_cnn)
    mine.__class__ = Mine
    assert FineTuning(mine).wants_probe()
    mine.spec = replace(mine.spec, head_from="weights")
    assert not FineTuning(mine).wants_probe()
    mine.spec, mine.head = replace(mine.spec, head_from="chance"), torch.nn.Sequential(mine.head)
    assert not FineTuning(mine).wants_probe()


class TwoTeachers(Method):
    """A method of one's own: a teacher that is a copy, and one of another training."""

    def __init__(self, classifier, other):
        super().__init__(classifier)
        self.mine, self.other = frozen_copy(classifier), other

    def losses(self, images, labels):
        raise NotImplementedError


def cnn(seed):
    torch.manual_seed(seed)
    return TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=64)


def test_copies_take_the_head_too_and_other_teachers_do_not():
    method = TwoTeachers(cnn(0), cnn(1))
    before = copy.deepcopy(method.other.state_dict())
    method.probe(DigitsData(40, 10, batch_size=8))
    assert torch.equal(method.mine.head.weight, method.classifier.head.weight)
    assert method.mine.head_from == "probe"
    again = TwoTeachers(cnn(0), cnn(1))
    again.start_from(method.classifier)
    for other in (again.classifier, again.mine):
        assert torch.equal(other.head.weight, method.classifier.head.weight)
    for twice in (method, again):
        assert twice.other.head_from == "chance"
        state = twice.other.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_a_probe_draws_so_many_images_and_no_more(monkeypatch):
    monkeypatch.setattr(probing, "PROBED", 20)
    method, passes = Distillation(cnn(0)), []
    method.classifier.encoder.register_forward_hook(lambda m, args, out: passes.append(len(out)))
    method.probe(DigitsData(60, 10, batch_size=8))
    assert passes == [8, 8, 4]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images_of_a_probe(monkeypatch, world):
    data = DigitsData(31, 10, batch_size=8)
    data.prepare(cnn(0).preprocess)
    whole = [image for images, _ in data.drawn(25) for image in images]
    monkeypatch.setattr(processes, "count", lambda: world)
    shares = []
    for own in range(world):
        monkeypatch.setattr(processes, "rank", lambda own=own: own)
        shares += [image for images, _ in data.drawn(25) for image in images]
    assert len(whole) == 25
    assert torch.equal(torch.stack(shares), torch.stack(whole))


CASES = {
    "few images": (7, 20, 3, 3, 1.0),
    "two classes": (60, 5, 2, 2, 1.0),
    "separable": (40, 10, 4, 4, 30.0),
    "a class without images": (80, 6, 5, 4, 1.0),
    "two of three classes": (50, 6, 3, 2, 1.0),
    "one image of a class": (30, 8, 3, 3, 0.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_fitted_head_is_that_of_scikit_learn(case, shift):
    images, width, classes, seen, apart = CASES[case]
    torch.manual_seed(len(case))
    labels = torch.randint(seen, (images,))
    labels[:seen] = torch.arange(seen)
    if case == "one image of a class":
        labels = torch.where(torch.arange(images) == 0, 0, 1 + labels % 2)
    if case == "two of three classes":
        labels = 2 * labels
    features = torch.randn(images, width) + apart * torch.randn(classes, width)[labels] + shift
    head = torch.nn.Linear(width, classes)
    fit_linear_head(head, features, labels)
    scale = features.square().mean().sqrt()
    theirs = LogisticRegression(tol=1e-9, max_iter=10_000).fit(
        (features / scale).double().numpy(), labels.numpy()
    )
    want = torch.from_numpy(theirs.predict_proba((features / scale).double().numpy())).float()
    known = labels.unique()
    with torch.no_grad():
        got = head(features)[:, known].softmax(1)
    assert (got - want).abs().max() < 1e-4
    if len(known) > 2:
        weight = torch.from_numpy(theirs.coef_).float()
        assert (head.weight[known] * scale - weight).abs().max() < 1e-4
    absent = [k for k in range(classes) if k not in labels]
    assert not head.weight[absent].any() and not head.bias[absent].any()


def test_what_cannot_be_fitted_is_refused():
    head = torch.nn.Linear(3, 2)
    with pytest.raises(InputError, match="at least 2 classes"):
        fit_linear_head(head, torch.rand(4, 3), torch.ones(4, dtype=torch.int64))
    with pytest.raises(InputError, match="finite features"):
        fit_linear_head(head, torch.full((4, 3), torch.nan), torch.arange(4) % 2)


@pytest.mark.slow
def test_two_processes_fit_the_head_that_one_does(run, tmp_path):
    options = [f"--run={tmp_path / 'two'}", *SETTINGS, "--data.batch_size=4"]
    assert train_together(options, 2) == [0, 0]
    one, two = (
        load_classifier(folder, "pretrained.safetensors").head for folder in (run, tmp_path / "two")
    )
    assert torch.allclose(one.weight, two.weight, atol=1e-4 * float(one.weight.abs().max()))
