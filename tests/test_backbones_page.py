"""The page of backbones says what happens."""

from __future__ import annotations

import pytest
from backbones import (
    KINDS,
    PAGE,
    model_options,
    page,
    parts,
    table_rows,
    told_apart,
    train_two_steps,
)

from cfmask import Relevance
from cfmask.counterfactual import Fill, PatchMask


def written(name):
    """Rows of one kind in the page, their notes in words."""
    lines = PAGE.read_text().splitlines()
    notes = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    cut = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    rows = [row for row in cut if row[0] == name]
    return [(row[:-1], tuple(notes[k] for k in row[-1].split(", ") if k)) for row in rows]


@pytest.mark.parametrize(
    ("name", "relevance"),
    [
        ("CLIP ViT", "AttentionRelevance"),
        pytest.param("EfficientNet", "GradCAM", marks=pytest.mark.slow),
    ],
)
def test_the_command_trains_what_the_page_says_works(name, relevance, tmp_path):
    """A handful; the slow tier has every cell."""
    cells = [("ObjectMask", "NoFill"), ("RandomMask", "NoFill"), ("ContextMask", "SingleFill")]
    (row,) = (row for row, _ in written(name) if relevance in row[3].split(", "))
    assert set(row[4:]) == {"yes"}
    options = [*model_options(KINDS[name], tmp_path), f"--model.relevance={relevance}"]
    assert train_two_steps(options, cells) == ""


def test_the_page_is_made_of_its_rows_and_names_all_relevances_masks_and_fills():
    text = PAGE.read_text()
    assert all(written(name) for name in KINDS)
    assert page({name: written(name) for name in KINDS}) == text
    named = [*parts(Relevance), *parts(PatchMask), *parts(Fill)]
    assert {"GradCAM", "ObjectMask", "NoFill"} < set(named)
    assert not [name for name in named if name not in text]


def test_what_fails_is_told_apart_from_what_works():
    bad, runs = {("a", "y"): "no y", ("c", "x"): "no c"}, []

    def command(cells):
        runs.append(cells)
        return next((bad[cell] for cell in cells if cell in bad), "")

    cells = [(mask, fill) for mask in "abc" for fill in "xyz"]
    assert told_apart(command, cells) == {cell: bad.get(cell, "") for cell in cells}
    # What works has run, and what fails has failed alone.
    assert all([cell] in runs for cell in bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_cell_of_the_page_is_what_the_command_does(name, tmp_path):
    assert table_rows(name, tmp_path) == written(name)
