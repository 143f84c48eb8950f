"""The rooms of the package lie on floors, and imports lead down only."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import cfmask

PACKAGE = Path(cfmask.__file__).parent
# Rooms from the ground up; those of one line import none of each other.
FLOORS = """
errors version attention losses
processes files images layer_masking heads wordnet digits
classifier shift tiny_clip/pretrain
checkpoint counterfactual relevance
families saved_relevance data
shifts methods
evaluation
reporting inference
runs
comparison
exporting
__init__
commands
__main__
"""
FLOOR = {room: k for k, line in enumerate(FLOORS.split("\n")) for room in line.split()}


def room(name: str) -> str:
    """`data` of `cfmask/data/epochs.py`, `images` of `cfmask/images.py`."""
    return name if name in FLOOR else name.split("/")[0]


def imported(path: Path) -> set[str]:
    """Files of the package that a file imports anywhere in its text, without their ending."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cfmask":
            base = "/".join(node.module.split(".")[1:])
            for name in (f"{base}/{alias.name}".lstrip("/") for alias in node.names):
                found.add(name if (PACKAGE / f"{name}.py").is_file() else base or "__init__")
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.split(".")[0] == "cfmask")
            found |= {name.replace(".", "/").removeprefix("cfmask/") for name in names}
    return {"__init__" if name == "cfmask" else name for name in found}


FILES = {str(p.relative_to(PACKAGE).with_suffix("")): p for p in PACKAGE.rglob("*.py")}
ARROWS = {name: imported(path) for name, path in FILES.items() if not name.endswith("/__init__")}


def test_every_file_has_its_floor():
    assert {room(name) for name in FILES} - {"tiny_clip"} <= set(FLOOR)


def test_imports_lead_down_only():
    up = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        # The public door names what lies behind it.
        if name != "__init__"
        for other in others
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not up


def test_no_files_import_each_other_in_a_circle():
    left = {name: others - {name} for name, others in ARROWS.items() if name != "__init__"}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left


def test_no_two_files_have_one_name():
    names = Counter(Path(name).name for name in FILES if not name.endswith("__init__"))
    names.update(path.stem for path in PACKAGE.parent.glob("*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_the_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == cfmask._HOME
    assert all(getattr(cfmask, name) is not None for name in cfmask.__all__)
