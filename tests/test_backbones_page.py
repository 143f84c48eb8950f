"""The page of backbones says what happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from backbones import KINDS, PAGE, page, parts, table_rows

from cfmask import Relevance
from cfmask.counterfactual import Fill, PatchMask


def written(name):
    """Rows of one kind in the page, their notes in words."""
    lines = PAGE.read_text().splitlines()
    notes = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    cut = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    rows = [row for row in cut if row[0] == name]
    return [(row[:-1], {notes[k] for k in row[-1].split(", ") if k}) for row in rows]


@pytest.mark.parametrize("name", ["CLIP ViT", "EfficientNet", "MaxViT, CoAtNet"])
def test_the_page_of_backbones_says_what_happens(name, tmp_path):
    happened = [(cells, set(reasons)) for cells, reasons in table_rows(name, tmp_path)]
    assert happened == written(name)


def test_the_page_names_all_backbones_relevances_masks_and_fills():
    text = PAGE.read_text()
    assert all(written(name) for name in KINDS)
    named = [*parts(Relevance), *parts(PatchMask), *parts(Fill)]
    assert {"GradCAM", "ObjectMask", "NoFill"} < set(named)
    assert not [name for name in named if name not in text]


@pytest.mark.slow
def test_the_page_of_backbones_is_current(tmp_path):
    assert page(tmp_path) == PAGE.read_text()
