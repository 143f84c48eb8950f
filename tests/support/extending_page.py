"""The files and commands of docs/extending.md."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from cfmask import ShiftReport

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)


# Of each, the name stands in its first line.
FILES = {text.split()[1]: text for kind, text in BLOCKS if kind}


LINES = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]


# What is evaluated is trained first; what needs an extra that is not there is left out.
LATE = [line for line in LINES if "my_hub" in line]


COMMANDS = [line for line in LINES if line not in LATE] + LATE * bool(find_spec("datasets"))


QUICK = {
    "runs/parts": ["--data.train_images=32", "--data.val_images=20", "--trainer.max_epochs=1"],
    "mine.yaml": ["--evaluation.pictures=0"],
    "eval": ["--pictures=0"],
}


def with_quick(words: list[str]) -> list[str]:
    """A command with options that make it short."""
    return [*words, *(part for key, parts in QUICK.items() if key in words for part in parts)]


def assert_parts_ran(folder: Path, said: str) -> None:
    """Every part has left its traces in what was printed or in the runs of a folder."""
    assert "Margin" in said
    assert "brightness my_sets.shades/shades 64 64" in said
    assert re.search(r"^1 \{'task': [\d.]+", said, re.M)
    kept = (folder / "runs" / "mine" / "config.yaml").read_text()
    for part in ("my_method.Smoothed", "my_net.MyNet", "my_data.Shades", "my_augmentation.Dim"):
        assert part in kept
    report = ShiftReport.load(folder / "runs" / "mine" / "report.json")
    assert report.row("tuned", "my_sets.shades/shades").total == 64
    assert report.value("tuned", "my_sets.shades/shades", "my_metric.MARGIN") > 0
    saved = ShiftReport.load(folder / "runs" / "answers" / "report.json")
    assert saved.row("answers.npz", "my_sets.shades/shades").correct == 64
