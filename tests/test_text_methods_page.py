"""The page of methods says what those with a text tower cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import cfmask
from cfmask import OpenClipClassifier, wordnet
from cfmask.commands.train_model import train
from cfmask.methods.towers import TextMethod
from cfmask.runs.cost import forward_cost, text_cost

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| (\d) \| (\d) \| [^|\d]+ \|$", re.M)
NAMES = {
    name for name in cfmask.names_in("methods") if issubclass(getattr(cfmask, name), TextMethod)
}


def test_every_method_with_a_text_tower_has_its_passes_on_the_page(tiny_clip):
    rows = {name: tuple(map(float, passes)) for name, *passes in ROW.findall(PAGE)}
    assert NAMES and set(rows) == NAMES
    for name in NAMES:
        method = getattr(cfmask, name)(tiny_clip)
        passes = method.passes(), sum(one.passes for one in method.text_passes())
        assert passes == rows[name], name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ViT-B/32", "ViT-B/16"])
def test_what_a_step_costs_is_that_of_the_page(model, monkeypatch):
    monkeypatch.setattr(
        "cfmask.families.openclip.zero_shot_weight", lambda *args: torch.randn(2, 512)
    )
    longest = sorted(wordnet.class_names(), key=len)[-2:]
    name = f"{model.replace('/', '-')}-quickgelu"
    classifier = OpenClipClassifier(name, None, longest)
    forward = forward_cost(classifier)
    (head,) = re.findall(r"^\| model \| fine-tuning \| (.*) \|$", PAGE, re.M)
    (row,) = re.findall(rf"^\| {model} \| 3 \| (.*) \|$", PAGE, re.M)
    said = dict(zip(head.replace("`", "").split(" | "), map(float, row.split(" | "))))
    assert set(said) == NAMES
    for kind in sorted(NAMES - {"CARFT", "TRACER"}):
        method = getattr(cfmask, kind)(classifier)
        counted = method.passes() + text_cost(method).flops / forward.flops
        assert said[kind] == pytest.approx(counted, rel=0.02), kind
    # The same passes as another one's; contexts of all classes would take long.
    assert (said["CARFT"], said["TRACER"]) == (said["LipsumFT"], said["CaRot"])


def test_the_command_of_the_page_runs(capfd):
    (line,) = re.findall(r"^cfmask train (--config demo .*)", PAGE, re.M)
    few = ["--data.train_images=12", "--data.val_images=4", "--data.batch_size=4"]
    train([*line.split(), *few, "--trainer.fast_dev_run=2"])
    assert "2 steps" in capfd.readouterr().out
