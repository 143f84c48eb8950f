"""Publish: a report -> files that can be read, quoted and shown.

An entry of `PUBLISHERS` makes one file; a new format is one function and one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cfmask.report import ShiftReport
from cfmask.tables import as_csv, as_latex, as_markdown

# Suffix of the file -> its text.
PUBLISHERS: dict[str, Callable[[ShiftReport], str]] = {
    "csv": as_csv,
    "md": as_markdown,
    "tex": as_latex,
}


def publish(report: ShiftReport, folder: Path, name: str = "report") -> list[Path]:
    """Write the report in every format of `PUBLISHERS`, beside its JSON.

    Args:
        report: what an evaluation gave.
        folder: where the files go; it exists.
        name: of the files, without suffix.

    Returns:
        The files, each replaced only when its text is whole.
    """
    files = [folder / f"{name}.{suffix}" for suffix in PUBLISHERS]
    for file, render in zip(files, PUBLISHERS.values()):
        partial = file.with_name(file.name + ".partial")
        partial.write_text(render(report), encoding="utf-8")
        partial.replace(file)
    return files
