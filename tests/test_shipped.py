"""Configurations that come with the package, and what is in its wheel."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages
from support.extending_page import COMMANDS, FILES, assert_parts_ran, with_quick

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


def test_a_folder_does_not_and_is_no_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("mine").mkdir()
    assert with_shipped_configs(["--config", "demo"]) == [
        "--config",
        str(shipped_configs()["demo"]),
    ]
    with pytest.raises(InputError, match=r"mine is a folder; that of a run is mine/config.yaml"):
        with_shipped_configs(["--config", "mine"])


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


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where a wheel of the package lies unpacked, without the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("cfmask", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    """What a command prints that has the package from the wheel alone."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_an_empty_folder(site, tmp_path):
    small = ["--trainer.max_epochs=1", "--data.train_images=64", "--evaluation.images=50"]
    said = run(site, tmp_path, "-m", "cfmask", "train", "--config", "demo", *small)
    assert "zero-shot" in said
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


@pytest.mark.slow
def test_every_part_of_ones_own_works_with_a_wheel_in_an_empty_folder(site, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    where = "import cfmask; print(cfmask.__file__)"
    assert Path(run(site, tmp_path, "-c", where).strip()).is_relative_to(site)
    said = ""
    for line in COMMANDS:
        program, *words = shlex.split(line)
        if program == "cfmask":
            words = ["-m", "cfmask", *with_quick(words)]
        said += run(site, tmp_path, *words)
    assert_parts_ran(tmp_path, said)
    kept = (tmp_path / "runs" / "parts" / "config.yaml").read_text()
    for part in ("my_mask.Brightest", "my_fill.NoiseFill", "my_relevance.Contrast"):
        assert part in kept
