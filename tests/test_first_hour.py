"""The commands of a first hour, from an installed wheel in a folder of photographs."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.first_hour import pictures, plant_photographs

from cfmask import ShiftReport

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("first_hour.sh")
NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self) -> None:
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(nn.Conv2d(3, 8, 8, 4, 2), nn.ReLU(), *pool, nn.Linear(8, 1000))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An empty folder with photographs and a network, and a wheel's `cfmask` beside it."""
    home = tmp_path_factory.mktemp("first hour")
    for name in ("cfmask", "configs"):
        shutil.copytree(ROOT / name, home / "source" / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, home / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(home / "wheel")]
    subprocess.run([*build, str(home / "source")], check=True)
    (wheel,) = (home / "wheel").glob("*.whl")
    target = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target"]
    subprocess.run([*target, str(home / "site"), str(wheel)], check=True)
    plant_photographs(home / "work" / "photos", count=10, sketches=3)
    (home / "work" / "my_net.py").write_text(NET)
    return home


@pytest.mark.slow
def test_every_command_of_the_first_hour_does_what_it_says(home):
    work = home / "work"
    env = {**os.environ, "PYTHONPATH": str(home / "site")}
    env["PATH"] = os.pathsep.join([str(home / "site" / "bin"), env["PATH"]])
    lines = [line for line in SCRIPT.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) >= 25
    said = {}
    for line in lines:
        began = time.perf_counter()
        done = subprocess.run(
            ["bash", "-c", line], cwd=work, env=env, capture_output=True, text=True
        )
        print(f"{time.perf_counter() - began:6.1f} s  {line}")
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line.partition(" --out")[0]] = done.stdout
    assert "tuned" in said["cfmask eval runs/photos"]
    assert "Over seeds" in said["cfmask eval runs/plain-0 runs/plain-1"]
    report = ShiftReport.load(work / "runs" / "photos" / "report.json")
    assert report.reference == "folders/id"
    assert {row.total for row in report.of("accuracy") if row.shift == "folders/id"} == {20}
    rows = list(csv.DictReader((work / "answers.csv").open()))
    assert len(rows) == 3 * len(pictures())
    for name in ("show.png", "layercam.png", "compared/report.html", "runs/my vit/report.html"):
        assert (work / name).stat().st_size > 1000
    # The package came from the wheel.
    assert (home / "site" / "cfmask" / "configs" / "folder.yaml").is_file()
