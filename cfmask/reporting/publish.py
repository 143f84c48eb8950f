"""Publish: a report -> files of every format.

An entry of `PUBLISHERS` makes one file; a new format is one function and one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cfmask.evaluation.results import Results
from cfmask.files import write_text
from cfmask.reporting.disagreement import Disagreement
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import as_csv, as_latex, as_markdown

Publishers = dict[str, Callable[[Results], str]]

# Suffix of the file -> its text.
PUBLISHERS: Publishers = {
    "csv": as_csv,
    "md": as_markdown,
    "tex": as_latex,
    "html": as_html,
}


def publish(
    report: Results,
    folder: Path,
    gallery: Sequence[Disagreement] = (),
    name: str = "report",
) -> list[Path]:
    """Write the report in every format of `PUBLISHERS`, beside its JSON.

    Args:
        report: the figures.
        folder: where the files go, each written whole or not at all.
        gallery: images for the page, on which the first two models disagree.
        name: of the files, without suffix.
    """
    pages: Publishers = {"html": partial(as_html, gallery=gallery)}
    made = {folder / f"{name}.{suffix}": of for suffix, of in (PUBLISHERS | pages).items()}
    for file, render in made.items():
        write_text(file, render(report))
    return list(made)
