"""The site of the documentation is built without a warning, and has every page and public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

import cfmask

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: object) -> list[str]:
    """Files of a navigation tree, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav if isinstance(nav, list) else list(nav.values())
    return [page for part in parts for page in pages(part)]


def test_every_page_is_in_the_navigation():
    listed = pages(CONFIG["nav"])
    assert len(set(listed)) == len(listed)
    assert set(listed) == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_every_public_name_is_in_the_reference():
    named = re.findall(r"^::: cfmask\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(set(named)) == len(named)
    # A constant has no docstring that could be shown.
    assert set(named) == set(cfmask.__all__) - {"SHIFTS"}


def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "no gradient is written, no hook stays" in reference
