from __future__ import annotations

import re
import shlex
from pathlib import Path

from support.runs import plant_run

from cfmask import Request, find_shifts
from cfmask.commands.eval_models import evaluate_run
from cfmask.evaluation.metrics import METRICS
from cfmask.evaluation.robustness import BUILT_IN

PAGE = (Path(__file__).parents[1] / "docs" / "measures.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
BLOCKS = [text for language, text in FENCED if not language]


def test_every_command_of_the_page_runs(tmp_path, tiny_clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plant_run(tmp_path / "runs" / "demo", tiny_clip)
    commands = [line for block in BLOCKS for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        args = shlex.split(line)
        assert args[:2] == ["python", "eval.py"]
        evaluate_run([*args[2:], "--images=20", "--pictures=0"])
        assert "Everything of this run" in capsys.readouterr().out
    assert (tmp_path / "runs" / "several" / "report.json").is_file()
    assert len(list((tmp_path / "runs" / "demo" / "predictions").glob("*.parquet"))) == 3


def test_the_metric_of_ones_own_is_one(tiny_clip):
    (text,) = (text for language, text in FENCED if language == "python")
    shifts = find_shifts(["digits/id"], Request(class_names=tiny_clip.class_names, images=30))
    names = {"models": {"a": tiny_clip}, "shifts": shifts}
    exec(text, names)
    assert 0 < names["report"].value("a", "id", "brier") < 2


def test_the_page_names_every_measure():
    table = "".join(re.findall(r"^\| `.*$", PAGE, re.M))
    named = {name for name in re.findall(r"`(\w+)`", table)}
    assert {name.replace("_probit", "_logit") for name in METRICS} <= named


def test_the_page_has_the_range_of_the_lines():
    (ends,) = {(fit.low, fit.high) for fit in BUILT_IN if fit.reference == "imagenet/val"}
    assert "{:.1f}–{:.1f} %".format(*(100 * end for end in ends)) in PAGE
