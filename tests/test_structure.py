"""The rooms of the package lie on floors, and imports lead down only."""

from __future__ import annotations

import ast
import runpy
from collections import Counter
from pathlib import Path

import cfmask

PACKAGE = Path(cfmask.__file__).parent
STRUCTURE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "structure.py"))
FLOOR, FILES, ARROWS, room = (STRUCTURE[name] for name in ("FLOOR", "FILES", "ARROWS", "room"))


def test_every_file_has_its_floor():
    assert {room(name) for name in FILES} == set(FLOOR)


def test_imports_lead_down_only():
    up = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not up


def test_no_files_import_each_other_in_a_circle():
    left = {name: set(others) for name, others in ARROWS.items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left


def test_no_two_files_have_one_name():
    names = Counter(Path(name).name for name in FILES if not name.endswith("__init__"))
    names.update(path.stem for path in PACKAGE.parent.glob("*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_every_public_name_is_what_its_module_defines():
    assert {"evaluate", "load_classifier", "Method", "GradCAM", "SHIFTS"} <= set(cfmask.__all__)
    for name in cfmask.__all__:
        value = getattr(cfmask, name)
        assert getattr(value, "__module__", cfmask._HOME[name]) == cfmask._HOME[name]


def test_the_structure_is_drawn(tmp_path):
    STRUCTURE["draw"](tmp_path / "structure.png")
    assert (tmp_path / "structure.png").read_bytes()[:4] == b"\x89PNG"


def test_no_test_module_imports_another():
    """What several share lies in tests/support and conftest.py."""
    found = [
        f"{file.name} imports {name}"
        for file in Path(__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.split(".")[0].startswith(("test_", "conftest"))
    ]
    assert found == []
