"""The commands of docs/evaluation.md, on made-up trees."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.imagenet_trees import SIDE, synsets
from support.runs import plant_run
from support.training import photos

from cfmask import TimmClassifier, digits
from cfmask.checkpoint import WEIGHTS, save_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.main import main
from cfmask.commands.parser import as_lists
from cfmask.runs.run_folder import RunFolder
from cfmask.shifts.published import PUBLISHED

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
REFITS = re.findall(r"^cfmask (refit .*)$", PAGE, re.M)
COMMANDS = re.findall(r"^python eval\.py (.*)$", PAGE, re.M)


def make_run(path: Path, names) -> None:
    """A run folder of a tiny untrained model."""
    classifier = TimmClassifier("test_resnet", False, list(names), image_size=SIDE * 4)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.start(yaml.safe_dump({"evaluation": {"shifts": ["digits"]}}), classifier)
    save_classifier(classifier, path / WEIGHTS)


@pytest.fixture
def home(everything, tmp_path, monkeypatch, tiny_clip) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(everything)
    photos(tmp_path / "photos")
    for folder in (tmp_path / "photos" / "test").iterdir():
        (tmp_path / "scenes" / "fruit" / folder.name).mkdir(parents=True)
        (tmp_path / "scenes" / "fruit" / folder.name / "table").symlink_to(folder)
    (tmp_path / "strange").mkdir()
    Image.new("RGB", (32, 32), (200, 0, 90)).save(tmp_path / "strange" / "a.png")
    plant_run(tmp_path / "runs" / "demo", tiny_clip)
    make_run(tmp_path / "runs" / "mine", synsets())
    make_run(tmp_path / "runs" / "plain", digits.CLASS_NAMES)
    make_run(tmp_path / "runs" / "photos", [p.name for p in (tmp_path / "photos/train").iterdir()])
    return tmp_path


def test_every_command_of_the_page_runs(home, capsys):
    assert len(COMMANDS) >= 5 and REFITS
    for line in REFITS:
        main([*shlex.split(line), "--images=100"])
    for line in COMMANDS:
        args = shlex.split(line)
        if "--check" in args:
            with pytest.raises(SystemExit) as end:
                evaluate_run(args)
            assert end.value.code == 1, "the made-up trees are not complete"
            assert "imagenet/val" in capsys.readouterr().out
        else:
            few = ["--allow_incomplete=true", "--wise=0.5", "--images=20", "--pictures=0"]
            evaluate_run([*args, *few])
            assert ("tuned" if "runs/" in line else "tiny-clip") in capsys.readouterr().out
    report = json.loads((home / "runs" / "mine" / "report.json").read_text())
    assert {row["shift"] for row in report["rows"]} >= {"imagenet/val", "imagenet/sketch"}


def test_the_page_tells_of_every_set_and_its_folders():
    for family, origins in PUBLISHED.items():
        assert f"`{family}`" in PAGE
        for name, origin in origins.items():
            assert f"`{name}`" in PAGE or origin.part_of
            assert origin.source in PAGE or origin.made_of


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        (["--shifts", "a", "--x", "b"], ["--shifts", '["a"]', "--x", "b"]),
        (["--shifts", "a,b/c", "d"], ["--shifts", '["a", "b/c"]', "d"]),
        (["--shifts=a"], ["--shifts", '["a"]']),
        (["--shifts", '["a"]'], ["--shifts", '["a"]']),
        (["--shifts", "--x"], ["--shifts", "--x"]),
        (["--x=a,b", "c,d"], ["--x=a,b", "c,d"]),
        (["--shifts"], ["--shifts"]),
    ],
)
def test_one_word_is_a_list(words, lists):
    assert as_lists(words, "--shifts") == lists
