from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import cfmask

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "open_clip_torch": "open-clip-torch"}
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(cfmask.__path__, "cfmask.")
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pyproject(key: str) -> Any:
    """A string or list of strings of pyproject.toml; Python 3.10 has no reader of TOML."""
    value = r'"[^"]*"|\[.*?^\]'
    found = re.search(rf"^{key} = ({value})$", text("pyproject.toml"), re.M | re.S)
    assert found, key
    return ast.literal_eval(found[1])


def split_pin(requirement: str) -> tuple[str, str]:
    """Name without extras, and version bound."""
    name, bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?\s*(.*)", requirement).groups()
    return name, bound


def test_the_environment_pins_what_the_package_pins():
    environment = yaml.safe_load(text("environment.yml"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    conda = dict(split_pin(entry) for entry in plain)
    assert len(conda) == len(plain)
    wanted = dict(split_pin(entry) for entry in pyproject("dependencies"))
    assert len(wanted) > 10
    python = conda.pop("python")
    assert conda.pop("pip") == ""
    assert conda == {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()}
    assert python.startswith(pyproject("requires-python"))
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}
    assert environment["channels"] == ["conda-forge"]


def test_every_supported_python_is_in_the_environment():
    versions = re.findall(r"Python :: 3\.(\d+)", text("pyproject.toml"))
    low, high = re.search(r"python >=3\.(\d+),<3\.(\d+)", text("environment.yml")).groups()
    assert [int(v) for v in versions] == list(range(int(low), int(high)))


def test_there_is_one_version():
    assert 'version = { attr = "cfmask.version.__version__" }' in text("pyproject.toml")
    assert str(yaml.safe_load(text("CITATION.cff"))["version"]) == cfmask.__version__
    assert f"## [{cfmask.__version__}]" in text("CHANGELOG.md")


def test_there_is_one_licence():
    assert yaml.safe_load(text("CITATION.cff"))["license"] == "Apache-2.0"
    assert 'license = { text = "Apache-2.0" }' in text("pyproject.toml")
    licence = text("LICENSE")
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("name", cfmask.__all__)
def test_a_public_name_is_there_and_documented(name):
    value = getattr(cfmask, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")


def public_parts(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, classes, their methods and properties that a module itself defines."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not own:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for part, method in vars(value).items():
                if part.startswith("_"):
                    continue
                if isinstance(method, (staticmethod, classmethod)):
                    method = method.__func__
                if inspect.isfunction(method) or isinstance(method, property):
                    yield f"{name}.{part}", method


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module):
    assert module.__doc__
    bare = [name for name, value in public_parts(module) if not (value.__doc__ or "").strip()]
    assert not bare


def test_the_search_for_docstrings_finds_what_there_is():
    found = {name for module in MODULES for name, _ in public_parts(module)}
    assert {"evaluate", "Classifier", "Classifier.features", "Classifier.name"} <= found
    assert {"Results.load", "ShiftReport.frame", "read_image", "Method.training_step"} <= found


@pytest.mark.parametrize(
    "file",
    sorted(file for folder in ("cfmask", "tests") for file in (ROOT / folder).rglob("*.py")),
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_no_source_file_is_too_long(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_guide_for_contributors_names_files_that_exist():
    rows = [line for line in text("CONTRIBUTING.md").splitlines() if line.startswith("|")]
    paths = [path for row in rows for path in re.findall(r"`([\w./<>]+\.py)`", row)]
    assert len(rows) == 10
    assert len(paths) >= 7
    for path in paths:
        assert (ROOT / path.replace("<name>", "__init__")).is_file(), path


def test_the_guide_for_contributors_names_parts_that_exist():
    rows = [line for line in text("CONTRIBUTING.md").splitlines() if line.startswith("|")]
    names = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    known = {name for module in MODULES for name in vars(module)} | set(dir(cfmask.Method))
    assert names
    assert names <= known


def test_hooks_need_no_network():
    hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}


@pytest.mark.skipif(os.name == "nt", reason="no executable bit")
def test_the_check_of_a_fresh_install_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
