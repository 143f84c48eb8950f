from __future__ import annotations

import csv
import json

import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import CSVLogger

from cfmask import DigitsData, FineTuning
from cfmask.runs.progress import POINTS, LogSteps, OneLineBar
from cfmask.runs.record import run_facts, training_curves


def test_a_short_run_logs_every_step_in_bars_of_one_line(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False,
        callbacks=[LogSteps(), OneLineBar()], logger=CSVLogger(tmp_path, name=None, version="csv"),
    )  # fmt: skip
    trainer.fit(FineTuning(tiny_clip), DigitsData(24, 10, batch_size=8))
    curves = training_curves(tmp_path)
    assert [step for step, _ in curves["loss/total"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in curves["val/accuracy"]] == [2, 5]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    bars = [line for line in lines if "it/s" in line]
    assert bars and all(line.startswith("Epoch") for line in lines)
    assert "val: 0." in bars[-1] and "loss: " in bars[-1] and "v_num" not in bars[-1]


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (599, 1), (3000, 10), (10**6, 50)])
def test_a_long_run_logs_less_often(steps, every):
    class Trainer:
        estimated_stepping_batches = steps
        log_every_n_steps = 0

    trainer = Trainer()
    LogSteps().on_train_start(trainer, None)
    assert trainer.log_every_n_steps == every


def logged(folder, rows: list[dict[str, object]]) -> None:
    (folder / "csv").mkdir()
    with (folder / "csv" / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_long_curve_is_thinned_to_means(tmp_path):
    count = 3 * POINTS
    logged(tmp_path, [{"epoch": 0, "step": k, "loss/total": k % 3} for k in range(count)])
    curve = training_curves(tmp_path)["loss/total"]
    assert curve == [[3 * k + 1, 1] for k in range(POINTS)]


def test_what_is_no_number_is_left_out(tmp_path):
    assert training_curves(tmp_path) == {}
    values = ["nan", "inf", "", "x", "0.5"]
    logged(tmp_path, [{"step": k, "loss/total": v} for k, v in enumerate(values)])
    assert training_curves(tmp_path) == {"loss/total": [[4, 0.5]]}


def part(name: str, **settings: object) -> dict[str, object]:
    return {"class_path": f"somewhere.{name}", "init_args": settings}


def test_a_run_says_what_it_was(tmp_path):
    mask = part("Counterfactual", mask=part("ObjectMask"), fill=part("SingleFill"))
    config = {
        "model": part("MaskedDistillation", counterfactual=[mask]),
        "data": part("FolderData", root="photos"),
    }
    summary = {"model": "tiny", "epochs": 2, "steps": 1234, "train_images": 5000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert run_facts(tmp_path) == {
        "method": "MaskedDistillation, ObjectMask + SingleFill",
        "model": "tiny",
        "data": "FolderData photos",
        "trained": "2 epochs, 1,234 steps on 5,000 images",
    }


@pytest.mark.parametrize("config", ["", "5", "[1]", "model: x", "model: {init_args: [2]}"])
def test_a_config_that_tells_nothing_is_no_error(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "summary.json").write_text("[]")
    assert run_facts(tmp_path) == {}
