"""Plain fine-tuning beside a run, under the same recipe."""

from __future__ import annotations

import json

import pytest
import yaml
from support.mortal import train_together
from support.training import DEMO, FAST, fails

from cfmask import ShiftReport
from cfmask.commands.train_model import command_line, train

# One step.
SMALL = [
    "--config", DEMO, *FAST, "--trainer.max_epochs=1", "--evaluation.pictures=0",
    "--data.train_images=16", "--data.val_images=10", "--evaluation.images=10",
    "--evaluation.shifts=[digits/id]",
]  # fmt: skip
FILES = ("weights.safetensors", "pretrained.safetensors")


def test_both_runs_are_those_of_commands_of_their_own(tmp_path, capsys, monkeypatch):
    both, apart, plain = tmp_path / "both", tmp_path / "apart", tmp_path / "plain"
    report = train([*SMALL, f"--run={both}", "--baseline=true"])
    shown = capsys.readouterr().out
    with monkeypatch.context() as patch:
        # The weights of the others say all.
        for name in ("_report", "_gallery"):
            patch.setattr(f"cfmask.commands.train_model.{name}", lambda *_: None)
        train([*SMALL, f"--run={apart}"])
        train([*SMALL, f"--run={plain}", "--method=FineTuning"])
    for file in FILES:
        assert (both / file).read_bytes() == (apart / file).read_bytes()
        assert (tmp_path / "both-plain" / file).read_bytes() == (plain / file).read_bytes()
    assert [row.model for row in report.of("accuracy")] == [
        *["both: zero-shot", "both: tuned", "both: WiSE-FT 0.5"],
        *["both-plain: tuned", "both-plain: WiSE-FT 0.5"],
    ]
    assert "both-plain: tuned" in shown
    # Again, nothing is trained; a changed recipe is refused, and so is one of the plain run alone.
    monkeypatch.setattr("cfmask.methods.base.Method.training_step", None)
    assert train([*SMALL, f"--run={both}", "--baseline=true"]).rows == report.rows
    config = tmp_path / "both-plain" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["lr"] = 1.0
    config.write_text(yaml.safe_dump(settings))
    assert "both-plain holds a run of another config" in fails(
        capsys, *SMALL, f"--run={both}", "--baseline=true"
    )


def test_what_lies_in_the_way_of_the_plain_run_is_seen_before_the_first(tmp_path, capsys):
    (tmp_path / "run-plain").mkdir()
    (tmp_path / "run-plain" / "thesis.txt").touch()
    line = fails(capsys, *SMALL, f"--run={tmp_path / 'run'}", "--baseline=true")
    assert "run-plain holds other files" in line
    assert not (tmp_path / "run").exists()


def test_plain_fine_tuning_has_no_baseline(tmp_path):
    run = tmp_path / "run"
    train([*SMALL, f"--run={run}", "--method=FineTuning", "--baseline=true"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    report = json.loads((run / "report.json").read_text())
    assert {row["model"] for row in report["rows"]} == {"zero-shot", "tuned", "WiSE-FT 0.5"}


@pytest.mark.slow
def test_two_processes_train_both(tmp_path):
    words = [*SMALL, f"--run={tmp_path / 'run'}", "--baseline=true", "--data.batch_size=8"]
    assert train_together(words, 2) == [0, 0]
    report = ShiftReport.load(tmp_path / "run" / "report.json")
    (start, *_, tuned) = (row for row in report.of("accuracy") if "WiSE" not in row.model)
    assert (start.model, tuned.model) == ("run: zero-shot", "run-plain: tuned")


@pytest.mark.slow
def test_the_folder_of_here_has_a_plain_one_beside_it(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    train([*SMALL, "--run=.", "--baseline=true"])
    assert (tmp_path / "here-plain" / "weights.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--resume=true"], ["--overwrite=true"]])
def test_both_runs_are_gone_on_with_or_replaced(tmp_path, more):
    """The words for one run hold for both."""
    words = [*SMALL, f"--run={tmp_path / 'run'}", "--baseline=true"]
    train(words)
    before = (tmp_path / "run-plain" / FILES[0]).stat().st_mtime_ns
    train([*words, *more])
    after = (tmp_path / "run-plain" / FILES[0]).stat().st_mtime_ns
    assert (after > before) == (more == ["--overwrite=true"])


def test_the_demo_has_one(tmp_path):
    assert command_line(["--config", "demo", f"--run={tmp_path}"]).config.baseline
