"""The commands of docs/data.md, on made-up images."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

from support.training import photos

from cfmask.commands.main import main
from cfmask.commands.train_model import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
COMMANDS = [
    line
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
    if not language
]
SMALL = [
    "--model.classifier.model=tiny-clip",
    "--model.classifier.pretrained=null",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--data.workers=0",
    "--data.batch_size=8",
    "--evaluation.workers=0",
]


def run(line: str, monkeypatch) -> None:
    first, program, *args = shlex.split(line)
    if first == "cfmask":
        main([program, *args, "--workers=0"])
    elif program == "train.py":
        train([*args, *SMALL])
    else:
        monkeypatch.setattr(sys, "argv", [program, "--images=8", "--rounds=1", "--quality=[90]"])
        runpy.run_path(str(ROOT / program), run_name="__main__")


def test_every_command_runs_in_the_order_of_the_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    photos(tmp_path / "photos")
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        run(line, monkeypatch)
        assert capsys.readouterr().out


def test_every_option_of_the_page_exists(capsys):
    """Those in the text are options of the data that the command helps with."""
    named = set(re.findall(r"--data\.(\w+(?:\.\w+)?)", PAGE))
    helps = ""
    for name in ("FolderData", "ShardData", "RandomCrop"):
        what = "--data.crop.help" if name == "RandomCrop" else "--data.help"
        prefix = ["--data=FolderData"] if name == "RandomCrop" else []
        try:
            train([*prefix, f"{what}={name}"])
        except SystemExit as end:
            assert not end.code
        helps += capsys.readouterr().out
    assert {name for name in named if not re.search(rf"--(data\.)?{name}\b", helps)} == set()


def test_the_ways_to_treat_unreadable_images_are_those_of_the_code():
    from typing import get_args

    from cfmask.data.unreadable import Unreadable

    rows = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert [*rows, "fail"] == list(get_args(Unreadable))
