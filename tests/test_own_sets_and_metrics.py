"""Sets and metrics of one's own, named by the import path of what makes them."""

from __future__ import annotations

import sys

import pytest
import torch
import yaml
from support.digits_sets import DIGITS, content
from support.runs import plant_run

from cfmask import InputError, ShiftReport, digits, evaluate, find_shifts, load_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.sources import labels_of
from cfmask.evaluation.own_metrics import own_metrics

SOURCE = '''
import torch
from cfmask import Metric, Shift, digits
from cfmask.data.datamodule import Tensors

def data(shade, preprocess):
    images = torch.full((6, 3, *preprocess.size), shade, dtype=torch.uint8)
    return Tensors(images, torch.arange(6))

def my_sets(request):
    assert tuple(request.class_names) == digits.CLASS_NAMES
    return [
        Shift("dark", lambda look: data(10, look), True),
        Shift("light", lambda look: data(200, look)),
    ]
my_sets.class_names = digits.CLASS_NAMES

class Pairs(list):
    def __init__(self):
        from PIL import Image
        super().__init__((Image.new("L", (9, 12), shade), shade % 10) for shade in (31, 42))

def margin(judged):
    best, second = judged.answers.logits.topk(2, 1).values.unbind(1)
    return (best - second).mean()

MARGIN = Metric("Margin of the logits", margin, "", "", 1, 2, needs_logits=True)

def answer_3(judged):
    """Share of answers that are class 3.

    More of it.
    """
    return None if judged.shift.in_distribution else (judged.answers.best[:, 0] == 3).float().mean()

def boundless(judged):
    return float("nan")

def nothing():
    return []

def broken(request):
    return [][1]
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with such a module, which is not on the path of imports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_module.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_a_function_makes_sets_under_its_path(here):
    before = list(sys.path)
    dark, light = find_shifts(["my_module.my_sets"], DIGITS)
    assert sys.path == before
    assert (dark.name, light.name) == ("my_module.my_sets/dark", "my_module.my_sets/light")
    assert (dark.in_distribution, light.in_distribution) == (True, False)
    assert content(light) == [(200, k) for k in range(6)]
    (alone,) = find_shifts(["my_module.my_sets/dark"], DIGITS)
    assert alone.name == dark.name
    with pytest.raises(InputError, match=r"Nearest: my_module\.my_sets/light"):
        find_shifts(["my_module.my_sets/ligth"], DIGITS)


def test_a_data_set_is_one_set_of_its_name(here):
    (shift,) = find_shifts(["my_module.Pairs"], DIGITS)
    assert shift.name == "my_module.Pairs/Pairs"
    assert content(shift) == [(31, 1), (42, 2)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_modul.my_sets", "Cannot import my_modul.my_sets"),
        ("my_module.yours", "import path of a class or function"),
        ("my_module.nothing", "list of Shift or a data set"),
    ],
)
def test_what_makes_no_sets_is_refused_in_one_line(here, name, says):
    with pytest.raises(InputError, match=says):
        find_shifts([name], DIGITS)


def test_an_error_in_ones_own_code_keeps_its_traceback(here):
    with pytest.raises(IndexError):
        find_shifts(["my_module.broken"], DIGITS)
    del sys.modules["my_module"]
    (here / "my_module.py").write_text("import not_there_at_all")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        find_shifts(["my_module.broken"], DIGITS)


def test_its_classes_are_those_of_a_model_that_brings_none(here):
    assert labels_of(["my_module.my_sets"], None).names == digits.CLASS_NAMES
    with pytest.raises(InputError, match=r"Pairs.class_names"):
        labels_of(["my_module.Pairs"], None)


def test_the_command_evaluates_on_it_beside_others_and_by_own_metrics(here, tiny_clip, capsys):
    plant_run(here / "run", tiny_clip)
    args = ["run", "--shifts", "digits/id,my_module.my_sets", "--images=10", "--pictures=0"]
    metrics = "my_module.MARGIN,my_module.answer_3"
    evaluate_run([*args, "--wise=0", "--metrics", metrics])
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("Margin of the logits", "Answer 3"))
    report = ShiftReport.load(here / "run" / "report.json")
    assert set(report.protocol["sets"]) == {
        "digits/id",
        "my_module.my_sets/dark",
        "my_module.my_sets/light",
    }
    light = "my_module.my_sets/light"
    assert report.row("tuned", light).total == 6
    assert len(report.of("my_module.MARGIN")) == 6
    assert {row.shift for row in report.of("my_module.answer_3")} == {light}
    picture = torch.full((1, 3, 48, 48), 200 / 255)
    logits = load_classifier(here / "run")(picture)[0].sort(descending=True).values
    margin = report.value("tuned", light, "my_module.MARGIN")
    assert margin == pytest.approx((logits[0] - logits[1]).item(), abs=1e-3)
    assert "my_module.MARGIN" in (here / "run" / "report.csv").read_text()
    for file in ("report.html", "report.md", "report.tex"):
        assert "Margin of the logits" in (here / "run" / file).read_text()
    assert "hare of answers that are class 3" in (here / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("top5", "--show prints them"),
        ("my_module.none", "a Metric or a function of Judged, but got None"),
        ("my_modul.MARGIN", "Cannot import my_modul.MARGIN"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(here, name, says):
    with pytest.raises(InputError, match=says):
        own_metrics([name])


def test_a_figure_that_is_no_number_is_refused(here, tiny_clip):
    shifts = find_shifts(["my_module.my_sets/dark"], DIGITS)
    metrics = own_metrics(["my_module.boundless"])
    with pytest.raises(InputError, match=r"my_module\.boundless to be a number, but got nan on"):
        evaluate({"a": tiny_clip}, shifts, metrics=metrics)


@pytest.mark.parametrize("setting", ["shifts", "metrics"])
def test_a_runs_config_imports_nothing_without_trust(setting, here, tiny_clip, capsys):
    run = plant_run(here / "run", tiny_clip)
    (here / "my_module.py").rename(run / "my_module.py")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"][setting] = ["my_module.my_sets"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for more, says in (
        ([], "code of its maker"),
        (["--trust=true"], "Modules beside the file are not looked at"),
    ):
        with pytest.raises(SystemExit):
            evaluate_run([str(run), "--pictures=0", *more])
        assert says in capsys.readouterr().err.replace("\n", " ")
    assert "my_module" not in sys.modules
