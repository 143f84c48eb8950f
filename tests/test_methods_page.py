"""The page of all methods: every one is there, and costs what it says."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from exact_cost import step_cost
from support.small_methods import build

import cfmask
from cfmask.methods.towers import TextMethod
from cfmask.runs.cost import forward_cost

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", re.M)
COUNTED = {name: tuple(map(float, figures)) for name, *figures in ROW.findall(PAGE)}


def test_every_method_is_on_the_page():
    of_images = {
        name
        for name in cfmask.names_in("methods")
        if not issubclass(getattr(cfmask, name), TextMethod)
    }
    assert set(COUNTED) == of_images


# Methods with the step of plain fine-tuning are slow tests. What LoRA makes once a step would be
# counted for each of a few images; its own tests tell them apart.
STEPS = [
    pytest.param(name, marks=pytest.mark.slow if name in ("L2SP", "LPFT", "SPD", "CLIPood") else ())
    for name in COUNTED
    if name != "LoRA"
]


@pytest.mark.parametrize("name", STEPS)
def test_a_method_costs_what_the_page_says(name, tiny_clip):
    passes, graphs, copies = COUNTED[name]
    size = sum(p.numel() for p in tiny_clip.parameters())
    method = build(getattr(cfmask, name), tiny_clip).train()
    forward, step = forward_cost(method.classifier, "32-true", "cpu"), step_cost(method, 2)
    assert method.passes() == pytest.approx(passes, rel=0.02)
    assert step.flops / forward.flops == pytest.approx(passes, rel=0.02)
    assert method.graphs() == graphs
    assert step.saved_bytes == pytest.approx(2 * graphs * forward.kept_bytes, rel=0.02, abs=1e5)
    beside = sum(p.numel() for p in method.parameters() if not p.requires_grad)
    frozen = sum(p.numel() for p in method.classifier.parameters() if not p.requires_grad)
    assert beside - frozen == copies * size


def test_its_commands_name_files_that_are_there():
    (line,) = re.findall(r"^python train\.py (.*)", PAGE, re.M)
    words = shlex.split(line)
    files = [after for word, after in itertools.pairwise(words) if word == "--config"]
    # A test trains by each of these files.
    assert len(files) == 2 and all((ROOT / name).is_file() for name in files)
