"""docs/scaling.md: its commands run, and what it computes is what the benchmark computes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from scaling import DEVICES, MODELS, PAGE, PLANNED, planned, table
from support.places import ROOT
from support.training import DEMO, SMALL, fails

from cfmask import ShiftReport
from cfmask.commands.train_model import train

TEXT = PAGE.read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S)
    for line in block.split("\n")
]
TINY = [*SMALL, "--trainer.max_epochs=1", "--data.train_images=16"]


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = [line for line in COMMANDS if line.startswith("python train.py")]
    assert len(commands) == 2
    for line in commands:
        train([*shlex.split(line)[2:], *TINY])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_the_command_of_several_processes_runs(tmp_path, launcher):
    (line,) = (line for line in COMMANDS if line.startswith("torchrun"))
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in line.split()]
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port=29511", *words[1:]]
    if launcher == "lightning":
        command = [sys.executable, *words[words.index("--") + 1 :]]
    options = [*TINY, f"--run={tmp_path / 'run'}", "--data.batch_size=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *options], check=True, cwd=tmp_path, env=environment)
    assert ShiftReport.load(tmp_path / "run" / "report.json").rows


def test_fsdp_is_refused_without_a_gpu_in_one_line(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("here it would run")
    options = ["--trainer.strategy=fsdp", "--model.two_backwards=false"]
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *TINY, *options)
    assert "Cannot build a run from these settings" in line
    assert "FSDP" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("label", MODELS)
def test_the_computed_rows_are_those_of_the_benchmark(label, devices):
    head, row = table(PLANNED, [planned(label, devices)]).split("\n")[::2]
    assert head in TEXT
    assert row in TEXT


def test_hours_follow_from_the_other_columns():
    rows = [line.strip("| ").split(" | ") for line in TEXT.split("\n") if line[:6] == "| CLIP"]
    assert len(rows) == len(MODELS) * len(DEVICES)
    for row in rows:
        devices, share, steps = (float(cell.replace(",", "")) for cell in row[1:4])
        assert steps * share * devices == pytest.approx(10 * 1_270_927, rel=1e-3)
        hours = float(row[4]) * 1e18 / (devices * 150e12) / 3600
        assert float(row[7]) == pytest.approx(hours, rel=0.06)
        assert float(row[8].replace(",", "")) * float(row[7]) * 3600 == pytest.approx(
            10 * 1_270_927, rel=0.06
        )
