"""What is private in other libraries is used from one file, which says when it has gone."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import cfmask
from cfmask import InputError, OpenClipClassifier, internals
from cfmask.families.openclip import resize_tower

PACKAGE = Path(cfmask.__file__).parent
LIBRARIES = ("torch", "timm", "open_clip", "pytorch_lightning", "lightning_fabric")


@pytest.mark.parametrize("name", internals.PARTS)
def test_a_part_that_has_gone_is_named_with_the_releases_that_have_it(name, monkeypatch):
    library, module, path = internals.PARTS[name]
    assert internals.internal(name) is not None
    *steps, last = path.split(".")
    owner = import_module(module)
    for step in steps:
        owner = getattr(owner, step)
    monkeypatch.delattr(owner, last, raising=False)
    if hasattr(owner, last):
        # It is made when it is asked for.
        monkeypatch.setitem(internals.PARTS, name, (library, module, f"{path}_gone"))
    with pytest.raises(InputError) as caught:
        internals.need(library)
    line = str(caught.value)
    assert last in line and f'pip install "{library}<' in line and "\n" not in line


def test_a_list_of_timms_that_has_gone_is_named():
    with pytest.raises(InputError, match=r"_info/gone.txt in timm"):
        internals.timm_text("gone.txt")


def test_what_was_tested_is_what_is_installed_by_default():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    bounds = dict(re.findall(r'"([\w-]+)>=[\d.]+,<([\d.]+)"', text))
    assert {name: bounds[name] for name in internals.UNTESTED} == internals.UNTESTED


def test_no_other_file_imports_what_is_private():
    private = [
        f"{path.name}: {node.module}.{alias.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
        for alias in node.names
        if any(part.startswith("_") for part in f"{node.module}.{alias.name}".split("."))
    ]
    assert private == []


@pytest.mark.parametrize("size", [(48, 96), (32, 32), (48, 48)])
def test_positions_are_resampled_as_images_are(size):
    classifier = OpenClipClassifier("tiny-clip", None, ("a", "b"), ("a {}",))
    tower = classifier.encoder
    old = tower.positional_embedding.detach()
    resize_tower(tower, size, "tiny-clip")
    grid = (size[0] // 8, size[1] // 8)
    plain = old[1:].T.reshape(1, -1, 6, 6)
    expected = F.interpolate(plain, grid, mode="bicubic", antialias=True, align_corners=False)
    if grid == (6, 6):
        expected = plain
    got = tower.positional_embedding
    assert torch.equal(got[1:].T.reshape(1, -1, *grid), expected)
    assert torch.equal(got[0], old[0])
