"""Plans: methods by settings by seeds, run once each and collected into one report."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel
from support.runs import plant_run

from cfmask import InputError, ShiftReport, save_classifier
from cfmask.checkpoint import WEIGHTS
from cfmask.commands import compare_plan
from cfmask.commands.main import main
from cfmask.comparison.collected import chosen_of, is_done, mark_done, tuned_row
from cfmask.comparison.plan import Plan, Run

SETS = ["digits/id", "digits/sketch", "digits/counter"]
PLAN: dict[str, Any] = {
    "seeds": [0, 1],
    "train": {"config": "demo", "data.seed": "{seed}"},
    "settings": [{"lr": 1e-4}, {"lr": 1e-3}],
    "methods": {"Plain tuning": {"method": "FineTuning"}, "clean": {"method": "Distillation"}},
    "evaluation": {"shifts": SETS, "images": 30, "wise": "0,0.25,...,1", "pictures": 0},
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "plan.yaml"
    plan = {"out": str(folder / "out"), **PLAN, **changes}
    file.write_text(
        yaml.safe_dump({k: v for k, v in plan.items() if v is not None}, sort_keys=False)
    )
    return file


def test_each_run_is_a_command_line_of_train(tmp_path):
    own = {"method": "LinearProbe", "settings": [{"lr": 0.01}, {"lr": 0.02}]}
    plan = Plan.read(written(tmp_path, methods={"probe": own, "Plain tuning": {}}, seeds=[3, 4]))
    runs = plan.tuning()
    assert [(r.method, r.setting, r.seed) for r in runs] == [
        (method, k, seed) for method in ("probe", "Plain tuning") for k in (0, 1) for seed in (3, 4)
    ]
    words = dict(zip(runs[3].words[::2], runs[3].words[1::2]))
    assert words["--lr"] == "0.02"
    assert words["--method"] == "LinearProbe"
    assert words["--data.seed"] == words["--seed"] == "4"
    assert words["--evaluation.shifts"] == json.dumps(SETS)
    assert words["--resume"] == "true"
    assert words["--run"] == str(runs[3].folder)
    assert runs[3].folder == tmp_path / "out" / "runs" / "probe-2-4"
    assert runs[-1].folder.name == "plain-tuning-2-4"
    assert [r.setting for r in plan.reported({"probe": 1, "Plain tuning": 0})] == [1, 1, 0, 0]
    single = Plan.read(written(tmp_path, settings=None, tuning_seeds=[9]))
    assert single.tuning() == []
    assert single.reported(chosen_of(single)[0])[0].folder.name == "plain-tuning-0"
    apart = Plan.read(written(tmp_path, tuning_seeds=[9]))
    assert {run.seed for run in apart.tuning()} == {9}
    # Runs that are not reported need no curve.
    for run, wise in (
        (apart.tuning()[0], "[]"),
        (apart.run("clean", 0, 3), "0,0.25,...,1"),
        (runs[3], "0,0.25,...,1"),
    ):
        words = dict(zip(run.words[::2], run.words[1::2]))
        assert words["--evaluation.wise"] == wise


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": {}}, "at least one method"),
        ({"seeds": []}, "one seed"),
        ({"seeds": [1, 1]}, "seeds that differ"),
        ({"tuning_seeds": [1]}, "tuning seeds that are not reported, but 1 is"),
        ({"methods": {"a b": {}, "a-b": {}}}, "names differ"),
        ({"methods": {"a": {}, "b": {"settings": [{}]}}}, "a has 2, b has 1"),
        ({"methods": {"a": {"settings": 3}}}, "list of options as the settings of a"),
        ({"settings": []}, "at least one"),
        ({"train": {"seed": 3}}, "no option seed"),
        ({"against": ["FLYP"]}, "methods of the plan to compare with, but FLYP is none"),
        ({"methods": None}, "lacks 'methods'"),
        ({"seed": [1]}, "adds 'seed'"),
        ({"seeds": ["one"]}, "seeds"),
        ({"methods": {"a": "FineTuning"}}, "FineTuning"),
    ],
)
def test_a_bad_plan_is_one_line_and_nothing_runs(tmp_path, changes, said, capsys):
    file = written(tmp_path, **changes)
    with pytest.raises(SystemExit) as end:
        main(["compare", str(file)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(file) in line
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"a": {"method": "FineTuning"}, "b": {"mthod": "x"}}, "--mthod"),
        ({"a": {"method": "FineTuning", "lr": -1}}, "lr|learning rate"),
        ({"a": {"method": "NoSuch"}}, "NoSuch"),
    ],
)
def test_what_train_would_refuse_is_refused_before_anything_runs(tmp_path, methods, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", str(written(tmp_path, methods=methods, settings=None))])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(word in line for word in said.split("|"))
    assert not (tmp_path / "out").exists()


VALIDATION = {"plain-tuning-1": 0.6, "plain-tuning-2": 0.7, "clean-1": 0.8, "clean-2": 0.8}


class Trainer:
    """Stands for the trainings of a plan: plants runs whose validation is known."""

    def __init__(self, clip, fails: str = "") -> None:
        self.clip = clip
        self.fails = fails
        self.ran: list[str] = []

    def __call__(self, run: Run, threads: int = 0) -> bool:
        name = run.folder.name
        self.ran.append(name)
        if name == self.fails:
            return False
        start, tuned = self.clip.state_dict(), copy.deepcopy(self.clip)
        plant_run(run.folder, tuned, seed=len(name) + run.seed)
        # Setting 2 goes farther, and so loses accuracy on every set, whatever its validation.
        far = 5 if run.setting else 3
        tuned.load_state_dict({k: v + far * (v - start[k]) for k, v in tuned.state_dict().items()})
        save_classifier(tuned, run.folder / WEIGHTS)
        config = {"seed_everything": run.seed, "model": {"lr": run.setting, "of": run.method}}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
        (run.folder / "summary.json").write_text(json.dumps({"steps": 96, "flops": 2e12}))
        (run.folder / "csv").mkdir()
        best = VALIDATION[name.rpartition("-")[0]] + 0.01 * run.seed
        lines = ["step,val/accuracy", f"0,{best - 0.2}", f"5,{best}", f"9,{best - 0.1}"]
        (run.folder / "csv" / "metrics.csv").write_text("\n".join(lines) + "\n")
        mark_done(run)
        return True


def test_a_plan_is_carried_out_goes_on_and_is_reported(tmp_path, _tiny_clip, monkeypatch, capsys):
    file, out = written(tmp_path), tmp_path / "out"
    monkeypatch.setattr(compare_plan, "_check", lambda plan: None)
    first = Trainer(_tiny_clip, fails="clean-1-1")
    monkeypatch.setattr(compare_plan, "train_apart", first)
    with pytest.raises(SystemExit):
        main(["compare", str(file)])
    assert "1 did not: see" in capsys.readouterr().err
    assert len(first.ran) == 8
    with pytest.raises(SystemExit):
        main(["compare", str(file), "--collect"])
    assert "1 of 8 are not: clean-1-1" in capsys.readouterr().err
    again = Trainer(_tiny_clip)
    monkeypatch.setattr(compare_plan, "train_apart", again)
    main(["compare", str(file), "--jobs", "2"])
    assert again.ran == ["clean-1-1"]
    shown = capsys.readouterr().out
    assert "comparison.md" in shown
    report = ShiftReport.load(out / "report" / "report.json")
    # The better of plain tuning, and the first of two that are equally good.
    names = ["plain-tuning-2-0", "plain-tuning-2-1", "clean-1-0", "clean-1-1"]
    assert [f"{name}: tuned" in report.models for name in names] == [True] * 4
    assert sum(model.endswith(": tuned") for model in report.models) == 4
    assert [front.model for front in report.fronts] == ["plain-tuning-2", "clean-1"]
    assert [len(front.curves) for front in report.fronts] == [2, 2]
    values = {n: report.value(f"{n}: tuned", "id") for n in names}
    tables = (out / "comparison.md").read_text()
    pairs = [[values[n] for n in names[2:]], [values[n] for n in names[:2]]]
    test = ttest_rel(*pairs)
    ends = test.confidence_interval(0.95)
    figures = 100 * np.array([np.mean(np.subtract(*pairs)), *ends])
    signed = [f"{x:+.1f}".replace("-", "−") for x in figures]
    assert f"{signed[0]} [{signed[1]} to {signed[2]}" in tables
    assert "| Plain tuning | 2 | 60.5 / 70.5 | 96 |  | 2 |" in tables
    assert "Fronts: mean of shifts at equal accuracy on id" in tables
    assert "±" in tables
    with (out / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    found = {(r["method"], r["seed"], r["alpha"], r["set"]): r for r in rows}
    assert len(found) == len(rows) == 4 * 5 * len({r["set"] for r in rows})
    row = found["clean", "1", "0.5", "digits/sketch"]
    expected = report.row("clean-1-1: WiSE-FT 0.5", "sketch")
    assert float(row["accuracy"]) == pytest.approx(expected.value, abs=1e-6)
    assert (int(row["correct"]), int(row["total"])) == (expected.correct, 30)
    assert row["command"].startswith("cfmask train --config demo")
    # Against one method, which is the first of each pair then.
    written(tmp_path, against=["clean"])
    main(["compare", str(file), "--collect"])
    (gap,) = ShiftReport.load(out / "report" / "report.json").gaps
    assert (gap.first, gap.second) == ("clean-1", "plain-tuning-2")
    assert (
        f"{signed[0].translate(str.maketrans('+−', '−+'))} [" in (out / "comparison.md").read_text()
    )
    assert "torch" in row["versions"]
    assert row["device"]
    # The third time nothing is left to do but to report, from the answers that are kept.
    last = Trainer(_tiny_clip)
    monkeypatch.setattr(compare_plan, "train_apart", last)
    main(["compare", str(file), "--collect"])
    assert last.ran == []
    assert ShiftReport.load(out / "report" / "report.json").run["images"] == 0


def test_a_run_of_other_words_is_not_taken_for_done(tmp_path, _tiny_clip):
    plan = Plan.read(written(tmp_path))
    run = plan.tuning()[0]
    assert not is_done(run)
    Trainer(_tiny_clip)(run)
    assert is_done(run)
    other = Plan.read(written(tmp_path, settings=[{"lr": 2e-4}, {"lr": 1e-3}])).tuning()[0]
    assert other.folder == run.folder
    assert not is_done(other)


def test_rows_are_named_as_the_report_names_them_where_folders_are_links(tmp_path):
    runs = Plan.read(written(tmp_path)).tuning()[:2]
    (tmp_path / "disk" / "moved").mkdir(parents=True)
    runs[0].folder.parent.mkdir(parents=True)
    runs[0].folder.symlink_to(tmp_path / "disk" / "moved")
    assert [tuned_row(run, runs) for run in runs] == ["moved: tuned", "plain-tuning-1-1: tuned"]
    assert tuned_row(runs[0], runs[:1]) == "tuned"


def test_without_a_log_of_the_validation_no_setting_is_chosen(tmp_path, _tiny_clip):
    plan = Plan.read(written(tmp_path))
    for run in plan.tuning():
        Trainer(_tiny_clip)(run)
    assert chosen_of(plan)[0] == {"Plain tuning": 1, "clean": 0}
    (plan.tuning()[0].folder / "csv" / "metrics.csv").unlink()
    with pytest.raises(InputError, match="keep csv among its loggers"):
        chosen_of(plan)


def test_a_cluster_needs_submitit(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    monkeypatch.setattr(compare_plan, "_check", lambda plan: None)
    with pytest.raises(SystemExit):
        main(["compare", str(written(tmp_path)), "--cluster", "slurm"])
    assert "pip install 'cfmask[slurm]'" in capsys.readouterr().err


SMALL = {
    "config": "demo",
    "epochs": 1,
    "data.train_images": 16,
    "data.val_images": 10,
    "data.batch_size": 8,
}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["pool", "local"])
def test_real_trainings_of_a_plan(tmp_path, cluster, capsys):
    if cluster == "local":
        pytest.importorskip("submitit")
    methods = {"plain": {"method": "FineTuning"}, "clean": {"method": "Distillation"}}
    evaluation = {**PLAN["evaluation"], "images": 10}
    changes = {"methods": methods, "settings": None, "seeds": [0], "evaluation": evaluation}
    file = written(tmp_path, train=SMALL, slurm={"timeout_min": 5}, **changes)
    main(["compare", str(file), "--cluster", cluster])
    if cluster == "local":
        assert "2 jobs submitted" in capsys.readouterr().out
        plan = Plan.read(file)
        runs = plan.reported({"plain": 0, "clean": 0})
        import time

        while not all(map(is_done, runs)):
            time.sleep(1)
        main(["compare", str(file)])
    report = ShiftReport.load(tmp_path / "out" / "report" / "report.json")
    assert [front.model for front in report.fronts] == ["plain-0", "clean-0"]
    # The answers are those of the runs' own evaluations.
    assert report.run["images"] == 0
    capsys.readouterr()
    main(["compare", str(file)])
    assert "to go" not in capsys.readouterr().out


PLANS = sorted((Path(__file__).parents[1] / "benchmarks" / "plans").glob("*.yaml"))


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=[pytest.mark.slow] * (f.stem != "digits_fronts")) for f in PLANS]
)
def test_the_plans_that_come_with_the_project_would_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare_plan._check(Plan.read(file))


def test_the_plan_of_the_page_is_one_and_the_plans_that_it_names_are_there(tmp_path):
    root = Path(__file__).parents[1]
    page = (root / "docs" / "comparing.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "plan.yaml").write_text(example)
    plan = Plan.read(tmp_path / "plan.yaml")
    assert (plan.count, len(plan.tuning()), plan.slurm["timeout_min"]) == (2, 4, 600)
    pages = page + (root / "docs" / "results.md").read_text()
    named = set(re.findall(r"^`?cfmask compare (\S+\.yaml)", pages, re.M))
    assert {Path(name).name for name in named} == {file.name for file in PLANS}
    assert all((root / name).is_file() for name in named)
