"""A classifier of one's own class: trained, saved, loaded, evaluated and exported as that class."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import timm

from cfmask import (
    Classifier,
    InputError,
    Layout,
    OpenClipClassifier,
    Preprocess,
    Request,
    ShiftReport,
    Spec,
    TimmClassifier,
    digits,
    evaluate,
    find_shifts,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS, check_comes_back
from cfmask.commands.train_model import command_line, train
from cfmask.exporting.reading import open_model
from cfmask.exporting.writing import export

MODULE = '''
import torch
from torch import nn
from cfmask import Classifier, Layout, OpenClipClassifier, Preprocess, Spec


class Squares(Classifier):
    """A small CNN of one's own, whose features are multiplied by a number."""

    def __init__(self, class_names=(), width: int = 8, factor: float = 1.0) -> None:
        spec = Spec("squares", class_names, Preprocess((16, 16)), width=width,
                    options={"factor": factor})
        torch.manual_seed(0)
        super().__init__(self.architecture(spec), nn.Linear(width, len(class_names)), spec)
        self.factor = factor

    @classmethod
    def architecture(cls, spec):
        stem = nn.Conv2d(3, spec.width, 4, 4)
        return nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @classmethod
    def layout_of(cls, encoder, image_size):
        return Layout((4, 4), "0")

    @classmethod
    def from_spec(cls, spec):
        made = super().from_spec(spec)
        made.factor = spec.options["factor"]
        return made

    def encode(self, normalised, hidden):
        return self.factor * super().encode(normalised, hidden)


class Plain(Classifier):
    """The like without from_spec."""

    def __init__(self, class_names=(), factor: float = 1.0) -> None:
        spec = Spec("plain", class_names, Preprocess((16, 16)), width=8)
        super().__init__(Squares.architecture(spec), nn.Linear(8, len(class_names)), spec)
        self.factor = factor

    layout_of = Squares.layout_of


class Forgets(Plain):
    """Has a number that its file does not hold."""

    factor = 1.0
    architecture = Squares.architecture

    def encode(self, normalised, hidden):
        return self.factor * super().encode(normalised, hidden)


class Adds(Squares):
    """Has a weight that it does not rebuild."""

    def __init__(self, class_names=(), width: int = 8) -> None:
        super().__init__(class_names, width)
        self.extra = nn.Parameter(torch.zeros(1))


class Alone(Squares):
    """Takes the names of its classes and nothing else."""

    def __init__(self, class_names=()):
        super().__init__(class_names)


class Broken(Squares):
    def __init__(self, class_names=()) -> None:
        raise RuntimeError("a bug of one's own")


class Halved(OpenClipClassifier):
    """An open_clip model that sees half of the light."""

    def encode(self, normalised, hidden):
        return super().encode(normalised / 2, hidden)
'''
FAST = [
    "--data=DigitsData",
    "--data.train_images=32",
    "--data.batch_size=16",
    "--data.val_images=20",
    "--trainer.max_epochs=1",
    "--evaluation.shifts=[digits/id]",
    "--evaluation.images=20",
    "--trainer.accelerator=cpu",
    "--evaluation.pictures=0",
]


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """A module of the user's, which can be imported."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "own_parts.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("own_parts", None)


def images(classifier: Classifier, count: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *classifier.image_size, generator=rng)


def header(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["classifier"])


def is_tuned(row) -> bool:
    return (row.model, row.metric) == ("tuned", "nll")


@torch.no_grad()
def test_a_run_of_ones_own_class_ends_in_that_class(tmp_path):
    run = tmp_path / "run"
    method = ["--model=FineTuning", "--model.classifier=own_parts.Squares"]
    with torch.enable_grad():
        train([*method, "--model.classifier.factor=3", *FAST, "--run", str(run)])
    kind = sys.modules["own_parts"].Squares
    for file in (run / WEIGHTS, run / PRETRAINED, run / "checkpoints" / "last.ckpt"):
        assert type(load_classifier(file)) is kind
    assert header(run / WEIGHTS)["class_path"] == "own_parts.Squares"
    tuned = load_classifier(run)
    assert tuned.factor == 3
    # The report is of this class, by the number that its parent leaves out.
    (told,) = (r.value for r in ShiftReport.load(run / "report.json").rows if is_tuned(r))
    shifts = find_shifts(["digits/id"], Request(None, tuned.class_names, images=20))
    (again,) = (r.value for r in evaluate({"tuned": tuned}, shifts).rows if is_tuned(r))
    assert told == pytest.approx(again)
    tuned.factor = 1.0
    (other,) = (r.value for r in evaluate({"tuned": tuned}, shifts).rows if is_tuned(r))
    assert told != pytest.approx(other)
    tuned.factor = 3
    del sys.modules["own_parts"]
    with pytest.raises(InputError, match=r"own_parts\.Squares"):
        load_classifier(run)
    export(str(run), "safetensors", str(tmp_path / "exported"), trust=True)
    batch = images(tuned)
    assert torch.equal(open_model(tmp_path / "exported", trusted=True).logits(batch), tuned(batch))
    with pytest.raises(InputError, match="formats for it: safetensors, onnx"):
        export(str(run), "timm", str(tmp_path / "timm"), trust=True)


def test_a_class_may_take_the_names_of_its_classes_alone(tmp_path):
    args = ["--model=FineTuning", "--model.classifier=own_parts.Alone", *FAST]
    cli = command_line([*args, "--run", str(tmp_path / "run")])
    assert type(cli.model.classifier).__name__ == "Alone"
    assert cli.model.classifier.class_names == digits.CLASS_NAMES


@torch.no_grad()
def test_it_comes_back_with_all_that_its_spec_says(tmp_path):
    import own_parts

    mine = own_parts.Squares(["a", "b"], width=4, factor=-2.0)
    check_comes_back(mine)
    save_classifier(mine, str(tmp_path / "x.safetensors"))
    loaded = load_classifier(str(tmp_path / "x.safetensors"))
    assert type(loaded) is own_parts.Squares
    assert loaded.spec == mine.spec
    assert torch.equal(loaded(images(mine)), mine(images(mine)))


@torch.no_grad()
def test_a_subclass_of_a_family_comes_back_as_itself(tmp_path):
    import own_parts

    mine = own_parts.Halved("tiny-clip", None, ["a", "b"], head="linear")
    save_classifier(mine, tmp_path / "x.safetensors")
    loaded = load_classifier(tmp_path / "x.safetensors")
    assert type(loaded) is own_parts.Halved
    batch = images(mine)
    assert torch.equal(loaded(batch), mine.eval()(batch))
    parent = OpenClipClassifier.from_spec(mine.spec)
    parent.load_state_dict(mine.state_dict())
    assert not torch.allclose(loaded(batch), parent.eval()(batch))


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        train(list(args))
    assert end.value.code == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Forgets", "from_spec"),
        ("Adds", "extra"),
        ("Plain", "architecture or from_spec"),
    ],
)
def test_a_class_that_cannot_come_back_is_refused_before_training(tmp_path, capsys, name, words):
    options = ["--model.classifier.factor=3"] if name == "Forgets" else []
    classifier = ["--model=FineTuning", f"--model.classifier=own_parts.{name}", *options]
    line = fails(capsys, *classifier, *FAST, "--run", str(tmp_path / "run"))
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_bug_of_ones_own_constructor_keeps_its_traceback(tmp_path, module):
    args = ["--model=FineTuning", "--model.classifier=own_parts.Broken", *FAST]
    with pytest.raises(RuntimeError, match="a bug of one's own") as caught:
        train([*args, "--run", str(tmp_path / "run")])
    assert "own_parts" in str(caught.traceback[-1].path)


def test_a_bug_when_it_is_rebuilt_keeps_its_traceback(tmp_path, monkeypatch):
    import own_parts

    save_classifier(own_parts.Squares(["a", "b"]), tmp_path / "x.safetensors")
    monkeypatch.setattr(own_parts.Squares, "architecture", lambda spec: spec.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        load_classifier(tmp_path / "x.safetensors")


def test_a_class_that_no_import_path_leads_to_is_refused_when_it_is_saved(tmp_path):
    class Local(TimmClassifier):
        pass

    mine = timm()
    mine.__class__ = Local
    again = Local.from_spec(mine.spec)
    with pytest.raises(InputError, match="top of a module"):
        save_classifier(again, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), torch.zeros(1), (1, 2), {1: 2}])
def test_options_that_are_not_json_are_refused_when_it_is_saved(tmp_path, value):
    import own_parts

    mine = own_parts.Squares(["a", "b"], factor=value)
    with pytest.raises(InputError, match="options of strings, numbers"):
        save_classifier(mine, tmp_path / "x.safetensors")


def test_a_head_of_an_unknown_kind_is_refused(tmp_path):
    mine = timm()
    for kind in ("linaer", "mlp", ""):
        spec = {**mine.spec.plain(), "head": kind}
        save_file(mine.state_dict(), tmp_path / "x.safetensors", {"classifier": json.dumps(spec)})
        with pytest.raises(InputError, match=r"kind of head.*linear"):
            load_classifier(tmp_path / "x.safetensors")


def test_a_bare_name_of_an_older_file_is_that_of_a_class_that_is_there(tmp_path):
    import own_parts

    mine = own_parts.Squares(["a", "b"])
    spec = {**mine.spec.plain(), "family": "Squares"}
    del spec["class_path"]
    save_file(mine.state_dict(), tmp_path / "x.safetensors", {"classifier": json.dumps(spec)})
    assert type(load_classifier(tmp_path / "x.safetensors")) is own_parts.Squares


WRONG = {
    "class_names": ([], "abc", [1, 2, 3], None, ["a", "b"], ["a", "b", "\ud800"]),
    "head_shape": ([3], [3, -1], [3, 2.5], [3, True], [3, 10**9], None, "x"),
    "mean": ([0, 0], [0, 0, "1"], [0, 0, None], None, 3),
    "std": ([1, 1, 0], [1, 1, -1], [1, 1, float("inf")], [1, 1, 10**400]),
    "model": (3, None, ["test_vit"], "no_such_model"),
    "head": (3, None, ["linear"]),
    "head_from": ("nowhere", 3, ["text"]),
    "class_path": (3, None, [], "", "."),
    "preprocess": (
        None,
        [],
        {"size": [160], "crop_pct": 1.0, "interpolation": "bicubic"},
        {"size": [-160, 160], "crop_pct": 1.0, "interpolation": "bicubic"},
        {"size": [160, 160], "crop_pct": 0, "interpolation": "bicubic"},
        {"size": [160, 160], "crop_pct": float("nan"), "interpolation": "bicubic"},
        {"size": [160, 160], "crop_pct": 1.0, "interpolation": "best"},
        {"size": [10**6, 160], "crop_pct": 1.0, "interpolation": "bicubic"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_spec_is_named_in_one_line(tmp_path, name):
    plain, file = timm().spec.plain(), tmp_path / "x.safetensors"
    for value in WRONG[name]:
        text = json.dumps({**plain, name: value})
        save_file(timm().state_dict(), file, {"classifier": text})
        with pytest.raises(InputError) as caught:
            load_classifier(file)
        line = str(caught.value)
        assert str(file) in line, (value, line)
        assert len(line.splitlines()) == 1
        assert len(line) < 700


def test_a_spec_takes_no_options_of_its_own_names():
    with pytest.raises(InputError, match="model"):
        Spec("x", ("a",), Preprocess(), options={"model": "y"})


def test_the_parts_that_ones_own_class_needs_are_public():
    assert Layout((1, 1), "").grid == (1, 1)
