"""What is private in other libraries is used from one file, which says when it has gone."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser

import cfmask
from cfmask import InputError, OpenClipClassifier, internals
from cfmask.families.openclip import resize_tower

PACKAGE = Path(cfmask.__file__).parent
LIBRARIES = ("torch", "timm", "open_clip", "pytorch_lightning", "lightning_fabric", "jsonargparse")


@pytest.mark.parametrize("name", internals.PARTS)
def test_a_part_that_has_gone_is_named_with_the_releases_that_have_it(name, monkeypatch):
    library, module, path = internals.PARTS[name]
    assert internals.internal(name) is not None
    *steps, last = path.split(".")
    owner = import_module(module)
    for step in steps:
        owner = getattr(owner, step)
    if last in vars(owner):
        monkeypatch.delattr(owner, last)
    if hasattr(owner, last):
        # It is made when it is asked for, or a parent's.
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


TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
}


def is_private(name: str | None) -> bool:
    return bool(re.fullmatch(r"_[a-zA-Z]\w*", str(name)))


def imports(tree: ast.AST) -> dict[str, str]:
    """What a file imports of a library by `from`: name here -> path there."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
        for alias in node.names
    }


def defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes, variables and attributes that a file makes."""
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            made.add(getattr(node, "attr", getattr(node, "id", "")))
    return made


def read(tree: ast.AST) -> set[str]:
    """Names that a file reads of something: as an attribute, or by `getattr`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            found.update(getattr(a, "value", "") for a in node.args if isinstance(a, ast.Constant))
    return {name for name in found if is_private(name)}


def overridden(tree: ast.AST) -> set[str]:
    """Private methods of a library's class that a subclass defines."""
    known, found = imports(tree), set()
    for kind in [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
        for base in [known[b.id] for b in kind.bases if getattr(b, "id", None) in known]:
            module, _, name = base.rpartition(".")
            own = [part.name for part in kind.body if isinstance(part, ast.FunctionDef)]
            parent = getattr(import_module(module), name)
            found |= {f"{name}.{n}" for n in own if is_private(n) and hasattr(parent, n)}
    return found


def test_no_other_file_touches_what_is_private():
    ours = set().union(*map(defined, TREES.values()))
    others = {name: tree for name, tree in TREES.items() if name != "internals.py"}
    for name, tree in others.items():
        private = [path for path in imports(tree).values() if any(map(is_private, path.split(".")))]
        assert private == [], name
        assert read(tree) - ours == set(), name


def test_what_is_overridden_is_listed():
    found = set().union(*map(overridden, TREES.values()))
    assert found >= {"RichProgressBar._update_metrics", "ExperimentWriter._check_log_dir_exists"}
    assert found <= {path for _, _, path in internals.PARTS.values()}


@pytest.mark.parametrize(
    "source",
    ["torch._C.x()", "net._pos_embed(x)", "getattr(action, '_typehint', None)", "self._trainer"],
)
def test_what_is_private_is_found(source):
    assert read(ast.parse(source))


def test_the_processor_is_asked_by_names_that_torch_has(monkeypatch):
    for name, probe in internals.PROBES.items():
        assert internals.processor_has(name) == getattr(torch.cpu, probe)()
        monkeypatch.delattr(torch.cpu, probe)
        assert not internals.processor_has(name)


def test_a_module_is_attached_once_it_has_a_trainer():
    module = pl.LightningModule()
    assert not internals.is_attached(module)
    module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert internals.is_attached(module)


def test_fused_optimisers_leave_out_a_step_by_themselves():
    weights = [torch.zeros(1, requires_grad=True)]
    assert internals.takes_found_inf(torch.optim.AdamW(weights, fused=True))
    assert not internals.takes_found_inf(torch.optim.AdamW(weights))


def test_the_options_of_a_parser_have_their_types():
    parser = ArgumentParser()
    parser.add_argument("--number", type=int | None)
    assert internals.option_types(parser)["--number"] == int | None
    assert not internals.has_positionals(parser)
    parser.add_argument("file", type=str)
    assert internals.has_positionals(parser)


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
