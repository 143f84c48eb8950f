"""Random damage to bytes and texts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def fuzz(examples: int, **given_: st.SearchStrategy) -> Callable:
    """So many made-up cases, the same ones each time."""
    wanted = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: wanted(given(**given_)(test))


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Bytes with parts changed."""
    for kind, share, extra in edits:
        at = int(share * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + len(extra) :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 50] + data[at:]
        else:
            data = data[:at] + extra + data[at + len(extra) :]
    return data


def tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def quietly(check: Callable, work: Path, *case: object) -> None:
    """Run a case; it leaves nothing but what it wrote itself, and changes no other file."""
    work.mkdir()
    before = tree(work.parent)
    here = os.getcwd()
    os.chdir(work)
    try:
        check(*case, work)
    finally:
        os.chdir(here)
        shutil.rmtree(work)
    assert tree(work.parent) == before
