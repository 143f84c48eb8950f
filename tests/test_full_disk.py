"""Every command that writes, where nothing can be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.hostile import said
from support.old_files import OLD
from support.pictures import noise
from support.shard_trees import plant_photos

from cfmask import files
from cfmask.commands.main import main

COMMANDS = {
    "export": ["export", "run", "--to=safetensors", "--out=out"],
    "export to open_clip": ["export", "run", "--to=open_clip", "--out=new/out"],
    "pack": ["pack", "photos", "--out=out", "--workers=0"],
    "show": ["show", "0.png", "1.png", "--label=three", "--checkpoint=run", "--out=show.png"],
    "eval": ["eval", "run", "--images=4", "--pictures=0"],
    "eval elsewhere": ["eval", "run", "--images=4", "--pictures=0", "--out=out", "--predictions"],
    "merge": ["merge", "run", "--by=wise", "--alpha=0.5", "--out=out"],
    "explain": ["explain", "0.png", "--model=run", "--lime.samples=4", "--side=12", "--out=x.png"],
    "missingness": [
        *("missingness", "run", "--data=photos/ant", "--images=2", "--samples=2", "--side=12"),
        *("--orders=random", "--hidings=grey", "--out=out"),
    ],
    "predict": ["predict", "run", "photos/ant", "--out=out.csv"],
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a run and pictures, in which the process stands."""
    for name in ("run", "clip"):
        shutil.copytree(OLD / name, tmp_path / name)
    plant_photos(tmp_path / "photos")
    for number in range(2):
        Image.fromarray(noise(20, 30, seed=number)).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(place, monkeypatch, command):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(place)
    monkeypatch.setattr(files.os, "fsync", full)
    code, (line,) = said(main, COMMANDS[command])
    assert code == 2
    assert "No space left on device. " in line
    assert "MB are free there" in line
    assert tree(place) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_read_only_is_one_line(place, monkeypatch, command):
    opened, made = os.open, Path.mkdir

    def refusing(path, flags, *more, **options):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **options)

    def refused(self, *more, **options):
        if not self.exists():
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        made(self, *more, **options)

    before = tree(place)
    monkeypatch.setattr(files.os, "open", refusing)
    monkeypatch.setattr(Path, "mkdir", refused)
    code, (line,) = said(main, COMMANDS[command])
    assert code == 2
    assert "Read-only file system" in line
    assert "make room" not in line
    assert tree(place) == before


@pytest.mark.parametrize("command", ["predict", "check"])
def test_what_writes_nothing_needs_no_room(place, monkeypatch, command):
    words = {"predict": ["predict", "run", "0.png"], "check": ["check", "--data_root=photos"]}
    monkeypatch.setattr(files.os, "fsync", None)
    assert said(main, words[command]) == (0, [])


def test_what_cannot_be_looked_at_is_one_line(place, monkeypatch):
    """A folder without rights to read; the tests may run as a user who has all rights."""
    scan = os.scandir

    def refusing(path="."):
        if "photos" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for words in (COMMANDS["pack"], ["eval", "run", "--shifts=folders", "--data_root=photos"]):
        code, lines = said(main, words)
        assert (code, len(lines)) == (2, 1)
        assert "Permission denied" in lines[0]
