from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from mortal import Death, train_in_child
from test_train import DEMO

from cfmask.train_command import train

# Six steps an epoch; masks and donors by chance.
SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
    "--data.train_images=48",
    "--data.val_images=20",
    "--data.batch_size=8",
    "--model.counterfactual.mask=RandomMask",
    "--model.counterfactual.fill=MultiFill",
    "--evaluation.shifts=[digits/id]",
    "--evaluation.images=20",
    "--checkpoints.every_steps=2",
]


STEP = "cfmask.methods:Method.training_step"
VALIDATION = "cfmask.methods:Method.validation_step"


def arguments(folder: Path, *options: str) -> list[str]:
    return ["--config", DEMO, f"--run={folder}", *SMALL, *options]


def run(folder: Path, *options: str) -> None:
    train(arguments(folder, *options))


def dies(folder: Path, where: str, call: int, *options: str) -> int:
    """Exit code of a run that is killed at the n-th call of a function."""
    return train_in_child(arguments(folder, *options), Death(where, call))


def metrics(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "csv" / "metrics.csv").open()))


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "pretrained.safetensors", "report.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    last = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    ]
    states = [c["optimizer_states"][0]["state"] for c in last]
    for key, state in states[0].items():
        assert all(torch.equal(state[name], states[1][key][name]) for name in state)
    assert last[0]["lr_schedulers"] == last[1]["lr_schedulers"]
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


def test_a_run_that_is_killed_three_times_ends_as_if_it_was_not(whole, tmp_path):
    folder = tmp_path / "run"
    first = dies(folder, STEP, 4)
    assert list((folder / "checkpoints").glob("step-*2.ckpt"))
    # While the second checkpoint after going on is being written.
    second = dies(folder, "os:fsync", 3, "--resume=true")
    assert list((folder / "checkpoints").glob("*.partial"))
    third = dies(folder, VALIDATION, 3, "--resume=true")
    assert (first, second, third) == (-9, -9, -9)
    run(folder, "--resume=true")
    assert_same_run(whole, folder)
