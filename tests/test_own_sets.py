"""Evaluation sets of one's own, named by the import path of what makes them."""

from __future__ import annotations

import sys

import pytest
import yaml
from test_comparison import plant_run
from test_shifts import DIGITS, content

from cfmask import InputError, ShiftReport, digits, find_shifts
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.sources import labels_of

SOURCE = """
import torch
from cfmask import Shift, digits
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

def nothing():
    return []

def broken(request):
    return [][1]
"""


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


def test_the_command_evaluates_on_it_beside_others(here, tiny_clip):
    plant_run(here / "run", tiny_clip)
    args = ["run", "--shifts", "digits/id,my_module.my_sets", "--images=10", "--pictures=0"]
    evaluate_run([*args, "--wise=0"])
    report = ShiftReport.load(here / "run" / "report.json")
    assert set(report.protocol["sets"]) == {
        "digits/id",
        "my_module.my_sets/dark",
        "my_module.my_sets/light",
    }
    (row,) = (
        r
        for r in report.of("accuracy")
        if (r.model, r.shift) == ("tuned", "my_module.my_sets/light")
    )
    assert row.total == 6


def test_a_runs_config_imports_nothing_without_trust(here, tiny_clip, capsys):
    run = plant_run(here / "run", tiny_clip)
    (here / "my_module.py").rename(run / "my_module.py")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"]["shifts"] = ["my_module.my_sets"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for more, says in (
        ([], "code of its maker"),
        (["--trust=true"], "Modules beside the file are not looked at"),
    ):
        with pytest.raises(SystemExit):
            evaluate_run([str(run), "--pictures=0", *more])
        assert says in capsys.readouterr().err.replace("\n", " ")
    assert "my_module" not in sys.modules
