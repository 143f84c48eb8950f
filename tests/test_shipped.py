"""Configurations that come with the package, and what is in its wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

from cfmask import InputError
from cfmask.commands.shipped import shipped_configs, with_shipped_configs

ROOT = Path(__file__).parents[1]


def test_every_configuration_has_a_short_name():
    files = {path for path in (ROOT / "configs").rglob("*.yaml")}
    assert set(shipped_configs().values()) == files
    assert {"demo", "folder", "imagenet/vit_b32", "imagenet/methods/object_single"} <= set(
        shipped_configs()
    )


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml", "configs/demo"])
@pytest.mark.parametrize("form", [("--config", "{}"), ("-c", "{}"), ("--config={}",)])
def test_a_name_becomes_its_file(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = with_shipped_configs([part.format(name) for part in form])
    assert words[0] == form[0].partition("=")[0]
    assert yaml.safe_load(Path(words[1]).read_text())["run"] == "runs/demo"


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("run: mine\n")
    assert with_shipped_configs(["--config", "demo"]) == ["--config", "demo"]


def test_other_words_are_left_alone():
    words = ["--run", "demo", "--model.lr=1", "--config", "{run: x}", "-c", "mine.yaml"]
    assert with_shipped_configs(words) == words


def test_the_nearest_name_is_said():
    with pytest.raises(InputError, match=r"Unknown config 'dema'. Nearest: demo"):
        with_shipped_configs(["--config", "dema"])


def test_all_packages_are_listed():
    listed = (ROOT / "pyproject.toml").read_text()
    for name in find_packages(str(ROOT), include=["cfmask*"]):
        assert f'"{name}"' in listed


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_an_empty_folder(tmp_path):
    source = tmp_path / "source"
    for name in ("cfmask", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "-q",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    small = ["--trainer.max_epochs=1", "--data.train_images=64", "--evaluation.images=50"]
    done = subprocess.run(
        [sys.executable, "-m", "cfmask", "train", "--config", "demo", *small],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "zero-shot" in done.stdout
    assert (empty / "runs" / "demo" / "report.html").is_file()
