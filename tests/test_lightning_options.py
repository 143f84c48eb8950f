"""Lightning's own options do what they say, and every run ends with the weights of its rule."""

from __future__ import annotations

import csv
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training import DEMO, fails

from cfmask import FineTuning
from cfmask.commands.train_model import command_line, train
from cfmask.runs.equipment import LOGGERS, check_loggers, loggers_of
from cfmask.weights import read_checkpoint

# Two steps an epoch, one epoch.
TINY = [
    "--config", DEMO,
    "--trainer.max_epochs=1",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
    "--data.train_images=16",
    "--data.val_images=10",
    "--data.batch_size=8",
    "--evaluation.shifts=[digits/id]",
    "--evaluation.images=10",
    "--evaluation.pictures=0",
    "--evaluation.wise=",
]  # fmt: skip


@pytest.fixture(autouse=True)
def training_alone(monkeypatch) -> None:
    """The model is not evaluated, which is another matter."""
    for name in ("_gallery", "_report"):
        monkeypatch.setattr(f"cfmask.commands.train_model.{name}", lambda *args: None)


def arguments(folder: Path, *options: str) -> list[str]:
    return [*TINY, f"--run={folder}", *options]


def steps(folder: Path) -> dict[str, int]:
    """Optimiser step of every checkpoint."""
    paths = sorted((folder / "checkpoints").glob("*.ckpt"))
    return {path.stem: read_checkpoint(path)["global_step"] for path in paths}


def accuracies(folder: Path) -> dict[int, float]:
    """Accuracy on the held-out images by the step after which they were seen."""
    rows = csv.DictReader((folder / "csv" / "metrics.csv").open())
    return {int(r["step"]) + 1: float(r["val/accuracy"]) for r in rows if r["val/accuracy"]}


def assert_weights_of(folder: Path, checkpoint: str) -> None:
    state = read_checkpoint(folder / "checkpoints" / f"{checkpoint}.ckpt")["state_dict"]
    for name, value in load_file(folder / "weights.safetensors").items():
        assert torch.equal(value, state[f"classifier.{name}"]), name


@pytest.fixture
def getting_worse(monkeypatch):
    """Validation whose accuracy falls or rises with every step."""

    def set_to(sign: float) -> None:
        def step(self, batch, index):
            self.log("val/accuracy", 0.5 + sign * self.global_step / 100)

        monkeypatch.setattr("cfmask.methods.base.Method.validation_step", step)

    return set_to


def test_the_end_is_validated_where_validation_comes_less_often(tmp_path):
    folder = tmp_path / "run"
    train(arguments(folder, "--trainer.max_steps=1", "--trainer.check_val_every_n_epoch=5"))
    assert steps(folder) == {"best": 1, "last": 1}
    assert list(accuracies(folder)) == [1]
    assert_weights_of(folder, "last")


@pytest.mark.parametrize(("sign", "best"), [(1, 3), (-1, 2)])
def test_an_end_in_the_midst_of_an_epoch_is_one_to_choose_from(tmp_path, getting_worse, sign, best):
    getting_worse(sign)
    folder = tmp_path / "run"
    train(arguments(folder, "--trainer.max_epochs=3", "--trainer.max_steps=3"))
    assert list(accuracies(folder)) == [2, 3]
    assert steps(folder) == {"best": best, "last": 3}
    assert_weights_of(folder, "best")


def test_without_validation_the_weights_are_those_of_the_end(tmp_path):
    folder = tmp_path / "run"
    train(
        arguments(
            folder, "--trainer.limit_val_batches=0", "--checkpoints.every_steps=2",
            "--trainer.max_epochs=2",
        )
    )  # fmt: skip
    assert steps(folder) == {"last": 4, "step-000000002": 2, "step-000000004": 4}
    assert_weights_of(folder, "last")


@pytest.mark.parametrize("option", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_run_of_no_step_is_refused(tmp_path, capsys, option):
    line = fails(capsys, *arguments(tmp_path / "run", f"--trainer.{option}=0"))
    assert f"--trainer.{option} 0" in line
    assert not (tmp_path / "run").exists()


def test_ones_own_logger_progress_bar_and_callbacks_take_part(tmp_path, capsys):
    folder = tmp_path / "run"
    callbacks = """[
        {class_path: TQDMProgressBar},
        {class_path: EarlyStopping, init_args: {monitor: val/accuracy, patience: 1, mode: max}},
        {class_path: ModelCheckpoint, init_args: {dirpath: %s}}]"""
    train(
        arguments(
            folder, "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'own'}",
            f"--trainer.callbacks={callbacks % (tmp_path / 'mine')}",
            "--trainer.limit_train_batches=1",
        )
    )  # fmt: skip
    assert list((tmp_path / "own").rglob("metrics.csv"))
    assert not (folder / "csv").exists() and not (folder / "tensorboard").exists()
    assert "Epoch 0: 100%" in "".join(capsys.readouterr())
    assert [path.suffix for path in (tmp_path / "mine").iterdir()] == [".ckpt"]
    assert steps(folder)["last"] == 1


@pytest.mark.parametrize(("value", "kind"), [("1", int), ("1.0", float)])
def test_one_batch_is_not_taken_for_all_of_them(tmp_path, value, kind):
    names = ("limit_train_batches", "limit_val_batches", "val_check_interval")
    options = (f"--trainer.{name}={value}" for name in names)
    cli = command_line(arguments(tmp_path / "run", *options))
    assert [type(cli.config.trainer[name]) for name in names] == [kind] * 3


def test_no_logger_no_bar_and_no_checkpoints_leave_the_weights_of_the_end(
    tmp_path, monkeypatch, capsys
):
    folder, ends = tmp_path / "run", []
    monkeypatch.setattr(
        "cfmask.methods.base.Method.on_train_end",
        lambda self: ends.append({k: v.clone() for k, v in self.classifier.state_dict().items()}),
    )
    options = ["logger=false", "enable_progress_bar=false", "enable_checkpointing=false"]
    args = arguments(folder, *(f"--trainer.{option}" for option in options))
    train(args)
    names = {path.name for path in folder.iterdir()}
    assert not {"csv", "tensorboard", "checkpoints"} & names
    assert "Epoch" not in capsys.readouterr().out
    start, end = (load_file(folder / f"{w}.safetensors") for w in ("pretrained", "weights"))
    assert all(torch.equal(end[name], value) for name, value in ends[0].items())
    assert any(not torch.equal(end[name], value) for name, value in start.items())
    assert command_line(args).finished


def test_a_fast_run_leaves_nothing(tmp_path, capsys):
    train(arguments(tmp_path / "run", "--trainer.fast_dev_run=true"))
    assert "nothing is written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--optimizer=SGD", "--lr_scheduler=ExponentialLR"])
def test_an_optimiser_that_a_method_would_not_use_is_refused(tmp_path, capsys, option):
    assert "configure_optimizers" in fails(capsys, *arguments(tmp_path / "run", option))


def test_settings_that_lightning_refuses_late_are_one_line(tmp_path, capsys):
    line = fails(capsys, *arguments(tmp_path / "run", "--trainer.limit_train_batches=0.001"))
    assert "Cannot train with these settings" in line
    assert not (tmp_path / "run").exists()


def stopped_at(monkeypatch, step: int, what) -> None:
    """Have something happen at the beginning of a step."""
    original, calls = FineTuning.training_step, []

    def counted(self, batch, index):
        calls.append(index)
        if len(calls) == step:
            what()
        return original(self, batch, index)

    monkeypatch.setattr("cfmask.methods.base.Method.training_step", counted)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, monkeypatch, capsys, name, code):
    before = signal.getsignal(getattr(signal, name))
    stopped_at(monkeypatch, 1, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(SystemExit) as end:
        train(arguments(tmp_path / "run"))
    assert end.value.code == code
    assert f"stopped by {name} after step 1; the checkpoint is written" in capsys.readouterr().err
    assert steps(tmp_path / "run") == {"step-000000001": 1}
    assert signal.getsignal(getattr(signal, name)) == before
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_signal_in_the_last_step_ends_the_run_after_its_validation(tmp_path, monkeypatch, capsys):
    stopped_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        train(arguments(tmp_path / "run"))
    assert end.value.code == 130
    assert steps(tmp_path / "run") == {"best": 2, "last": 2}
    monkeypatch.undo()
    train(arguments(tmp_path / "run", "--resume"))
    assert_weights_of(tmp_path / "run", "best")


@pytest.mark.slow
def test_a_signal_at_the_end_of_an_epoch_without_validation_loses_no_step(
    tmp_path, monkeypatch, capsys
):
    options = ["--trainer.limit_val_batches=0", "--trainer.max_epochs=2"]
    train(arguments(tmp_path / "whole", *options))
    stopped_at(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(arguments(tmp_path / "run", *options))
    assert steps(tmp_path / "run") == {"step-000000002": 2}
    monkeypatch.undo()
    train(arguments(tmp_path / "run", *options, "--resume"))
    whole, run = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(run[name], value) for name, value in whole.items())


def test_a_second_ctrl_c_ends_the_run_at_once_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    stopped_at(monkeypatch, 1, twice)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            train(arguments(tmp_path / "run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert "stopped at once by SIGINT" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_signal_that_was_ignored_stays_ignored(tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopped_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        train(arguments(tmp_path / "run"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_a_run_whose_output_nobody_reads_ends_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    end, begin = os.pipe()
    monkeypatch.setattr(sys, "stdout", open(begin, "w"))  # noqa: SIM115
    stopped_at(monkeypatch, 1, lambda: (os.close(end), print("a line", flush=True)))
    with pytest.raises(SystemExit) as ended:
        train(arguments(tmp_path / "run"))
    assert ended.value.code == 141
    assert steps(tmp_path / "run") == {"step-000000001": 1}
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("stopped by") for line in lines) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_run_whose_output_is_full_is_trained_and_says_so_in_one_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    line = fails(capsys, *arguments(tmp_path / "run"))
    assert "No space left" in line
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_runs_share_a_database_of_mlflow_unless_there_is_a_server(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("cfmask.runs.equipment.MLFlowLogger", lambda *a, **k: given.append(k))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for run in ("a", "b"):
        LOGGERS["mlflow"](tmp_path / "runs" / run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here:5000")
    LOGGERS["mlflow"](tmp_path / "runs" / "c")
    beside = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert [k["tracking_uri"] for k in given] == [beside, beside, "http://here:5000"]


def test_a_run_warns_of_nothing(tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        # What Python shows a user, and Lightning adds to it.
        warnings.simplefilter("default")
        for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            warnings.filterwarnings("ignore", category=unseen)
        warnings.filterwarnings("default", ".*treespec.*")
        train(arguments(tmp_path / "run"))
    assert not [str(warning.message) for warning in seen]


def test_loggers_by_short_name(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    train(arguments(folder, "--logger", "csv"))
    assert (folder / "csv" / "metrics.csv").is_file()
    assert not (folder / "tensorboard").exists()
    kinds = [type(logger).__name__ for logger in loggers_of(folder, None)]
    assert kinds == ["TensorBoardLogger", "MetricsLogger"]
    # Curves of the report come from the CSV, which is there with any other logger.
    assert [type(one).__name__ for one in loggers_of(folder, None, ["tensorboard"])] == kinds
    assert "Nearest: tensorboard" in fails(capsys, *arguments(folder, "--logger", "tensorbord"))
    for name in ("wandb", "mlflow"):
        monkeypatch.setattr("cfmask.runs.equipment.find_spec", lambda name: None)
        said = fails(capsys, *arguments(tmp_path / name, f"--logger=csv,{name}"))
        assert f"pip install {name}." in said
        assert not (tmp_path / name).exists()
        monkeypatch.setattr("cfmask.runs.equipment.find_spec", lambda name: object())
        check_loggers([name])
        # Lightning itself knows these names of arguments.
        with pytest.raises(ModuleNotFoundError, match=name):
            LOGGERS[name](folder)
