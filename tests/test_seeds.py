"""Runs that differ by their seed alone: mean and standard deviation."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.runs import QUICK, plant_run

from cfmask import ShiftReport
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.train_model import command_line
from cfmask.comparison.seeds import families, seed_groups
from cfmask.evaluation.figures import Row
from cfmask.evaluation.spreads import spreads_of


def test_mean_and_deviation_are_numpys():
    rng = np.random.default_rng(0)
    values = rng.random((4, 3, 2))
    names = ["start a", "start b", "one", "two"]
    rows = [
        Row(model, shift, metric, float(values[i, j, k]))
        for i, model in enumerate(names)
        for j, shift in enumerate("xyz")
        for k, metric in enumerate(("accuracy", "nll"))
    ]
    starts = {"one": "start a", "two": "start b"}
    found = {(s.shift, s.metric): s for s in spreads_of(rows, {"both": ["one", "two"]}, starts)}
    assert len(found) == 6
    for j, shift in enumerate("xyz"):
        for k, metric in enumerate(("accuracy", "nll")):
            spread = found[shift, metric]
            own, gains = values[2:, j, k], values[2:, j, k] - values[:2, j, k]
            assert spread.models == ["one", "two"]
            assert (spread.mean, spread.sd) == pytest.approx((own.mean(), own.std(ddof=1)))
            assert spread.gain == pytest.approx(gains.mean())
            assert spread.gain_sd == pytest.approx(gains.std(ddof=1))


def test_without_starts_there_are_no_gains_and_without_all_figures_nothing():
    rows = [Row("a", "x", "nll", 1.0), Row("b", "x", "nll", 2.0), Row("a", "y", "nll", 1.0)]
    (spread,) = spreads_of(rows, {"both": ["a", "b"]}, {})
    assert (spread.shift, spread.gain, spread.gain_sd) == ("x", None, None)


def plant_config(folder: Path, seed: int, lr: float = 0.1, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text()) if file.is_file() else {}
    data = {"class_path": "cfmask.DigitsData", "init_args": {"seed": seed}}
    config |= {"seed_everything": seed, "model": {"init_args": {"lr": lr}}, "data": data}
    file.write_text(yaml.safe_dump(config | more))
    return folder


def test_only_runs_that_differ_by_seeds_are_alike(tmp_path):
    settings = {
        "mask-0": (0, 0.1),
        "mask-1": (1, 0.1),
        "mask-2": (2, 0.1),
        "plain": (0, 0.2),
        "again": (0, 0.2),
        "x": (3, 0.3),
        "y": (4, 0.3),
    }
    runs = {name: plant_config(tmp_path / name, *own, run=name) for name, own in settings.items()}
    rows = {f"{name}: {kind}": name for name in runs for kind in ("tuned", "WiSE-FT 0.5")}
    assert seed_groups(families(runs), rows) == {
        **{
            f"mask: {kind}": [f"mask-{k}: {kind}" for k in range(3)]
            for kind in ("tuned", "WiSE-FT 0.5")
        },
        **{f"x + y: {kind}": [f"x: {kind}", f"y: {kind}"] for kind in ("tuned", "WiSE-FT 0.5")},
    }


def test_eval_shows_them_in_the_terminal_on_the_page_and_in_the_json(tmp_path, _tiny_clip, capsys):
    runs = [tmp_path / f"run-{seed}" for seed in range(2)]
    for seed, run in enumerate(runs):
        plant_run(run, copy.deepcopy(_tiny_clip), seed)
        plant_config(run, seed)
    evaluate_run([*map(str, runs), f"--out={tmp_path / 'out'}", *QUICK, "--pictures=0"])
    shown = capsys.readouterr().out
    report = ShiftReport.load(tmp_path / "out" / "report.json")
    tuned = [f"run-{seed}: tuned" for seed in range(2)]
    for shift in ("digits/id", "digits/sketch"):
        (spread,) = [
            s
            for s in report.spreads
            if (s.model, s.shift, s.metric) == ("run: tuned", shift, "accuracy")
        ]
        values = np.array([report.value(model, shift) for model in tuned])
        start = report.value("run-0: zero-shot", shift)
        assert spread.mean == pytest.approx(values.mean())
        assert spread.sd == pytest.approx(values.std(ddof=1))
        assert spread.gain == pytest.approx((values - start).mean())
        text = f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
        page = (tmp_path / "out" / "report.html").read_text()
        assert text in shown
        captions = re.findall(r"<caption>(?:<[^>]*>)*Over seeds: Top-1 accuracy", page)
        assert len(captions) == 1
        assert all(words in page for words in (text, "Over seeds", "2 seeds"))
        assert text in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["spreads"]


def test_the_loop_of_the_page_over_seeds_makes_runs_that_are_alike(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "faq.md").read_text()
    ((seeds, train), ev) = (
        re.findall(r"^for seed in ([\d ]+); do cfmask (train .*); done$", page, re.M)[0],
        re.findall(r"^cfmask eval (.*photos-\d.*)$", page, re.M)[0],
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "train" / "a").mkdir(parents=True)
    for seed in seeds.split():
        words = train.replace("$seed", seed).split()[1:]
        with pytest.raises(SystemExit):
            command_line([*words, "--print_config"])
        run = tmp_path / "runs" / f"photos-{seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(capsys.readouterr().out)
    runs = {Path(run).name: tmp_path / run for run in ev.split()}
    rows = {f"{name}: tuned": str(run) for name, run in runs.items()}
    assert seed_groups(families(runs), rows) == {"photos: tuned": [*rows]}
