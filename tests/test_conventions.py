"""What holds for all of the package's source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cfmask

PACKAGE = Path(cfmask.__file__).parent
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Files that catch every exception, each with its reason.
CATCH_ALL = {
    # No estimate of the cost may stop a run; the encoder's own error shows in its first step.
    "runs/cost.py": 1,
}
# Files that open files to write: in `whole_file` or `whole_folder`, to nowhere, or a growing log.
WRITE = {
    "commands/compare_plan.py": 1,
    "data/file_index.py": 1,
    "data/packing.py": 1,
    "data/shard_fetch.py": 1,
    "exporting/predicting.py": 1,
    "files.py": 3,
    "runs/metrics_file.py": 1,
    "runs/resume.py": 1,
    "terminal.py": 3,
}


def broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches bugs of every kind, and does not raise them again."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
    again = any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))
    return (handler.type is None or bool(names & {"Exception", "BaseException"})) and not again


def counted(found: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in found.items() if count}


def test_nothing_catches_every_exception():
    found = {
        name: sum(isinstance(n, ast.ExceptHandler) and broad(n) for n in ast.walk(tree))
        for name, tree in TREES.items()
    }
    assert counted(found) == CATCH_ALL


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("except:\n pass", True),
        ("except Exception as e:\n raise ValueError from e", True),
        ("except (OSError, BaseException):\n pass", True),
        ("except BaseException:\n f()\n raise", False),
        ("except OSError:\n pass", False),
    ],
)
def test_what_catches_every_exception_is_found(source, expected):
    (handler,) = ast.parse(f"try:\n f()\n{source}").body[0].handlers
    assert broad(handler) is expected


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions and methods, by their bare name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


MODULES = ("os", "Image", "tarfile")


def opens(name: str, call: ast.Call) -> str | None:
    """The mode of a call that opens a file, as far as it can be read off; None for other calls."""
    if name == "write_bytes":
        return "wb"
    if name != "open":
        return None
    owner = getattr(getattr(call.func, "value", None), "id", "")
    method = isinstance(call.func, ast.Attribute) and owner not in MODULES
    given = {key.arg: key.value for key in call.keywords}.get("mode")
    place = 0 if method else 1
    mode = given or (call.args[place] if len(call.args) > place else None)
    if mode is None:
        return "r"
    return mode.value if isinstance(mode, ast.Constant) else ast.unparse(mode)


def test_files_are_written_whole_or_not_at_all():
    found = {}
    for name, tree in TREES.items():
        modes = [opens(*call) or "" for call in calls(tree)]
        found[name] = sum(bool(set("wax") & set(m)) or "O_W" in m or "O_RDWR" in m for m in modes)
        texts = [
            call for kind, call in calls(tree)
            if kind == "write_text" and isinstance(call.func, ast.Attribute)
        ]  # fmt: skip
        assert not texts, name
    assert counted(found) == WRITE


def test_text_is_read_and_written_in_utf8():
    for file, tree in TREES.items():
        for name, call in calls(tree):
            if name not in ("read_text", "open") or isinstance(call.func, ast.Name):
                continue
            if name == "open" and "b" in (opens(name, call) or ""):
                continue
            owner = getattr(call.func.value, "id", "")
            if owner in MODULES:
                continue
            given = {key.arg for key in call.keywords}
            assert "encoding" in given or (name == "read_text" and call.args), f"{file}: {name}"
