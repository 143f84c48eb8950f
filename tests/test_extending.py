"""Every file and command of the page on parts of one's own runs, in a folder with nothing else."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from support.extending_page import (
    COMMANDS,
    FILES,
    QUICK,
    assert_parts_ran,
    with_quick,
)

from cfmask.commands.main import main

QUICK["runs/parts"] += ["--baseline=false", "--wise=0.5"]
QUICK["runs/parts"] += ["--evaluation.images=10", "--shifts=digits/id", "--evaluation.pictures=0"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # As python does for the folder of the file that it runs.
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def test_the_page_has_a_file_for_every_part():
    parts = ["mask", "fill", "relevance", "net", "method", "data", "augmentation", "sets"]
    parts += ["metric", "evaluation", "answers", "hub", "loop"]
    assert set(FILES) == {f"my_{part}.py" for part in parts} | {"mine.yaml"}
    assert all(len(text.splitlines()) < 30 for text in FILES.values())


def test_every_command_runs_the_parts(here, capsys):
    # The longest one is left to the test with a wheel.
    for line in (line for line in COMMANDS if "runs/parts" not in line):
        program, *words = shlex.split(line)
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
        else:
            main(with_quick(words))
    assert_parts_ran(here, capsys.readouterr().out)
