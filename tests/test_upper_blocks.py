"""Training of the upper blocks alone, with the head as it was."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch
from support.small_methods import build, fit
from support.training import photos

from cfmask import (
    DigitsData,
    Distillation,
    FineTuning,
    InputError,
    LoRA,
    MaskedDistillation,
    RAdapter,
    TimmClassifier,
    digits,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.commands.main import main


def changed(before: dict, after: dict) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def is_upper(name: str) -> bool:
    """Of the last two of the tiny CLIP's four blocks, and what follows them."""
    above = ("transformer.resblocks.2.", "transformer.resblocks.3.", "ln_post", "proj")
    return name.removeprefix("encoder.").startswith(above)


def cnn() -> TimmClassifier:
    torch.manual_seed(1)
    made = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    made.head_from = "probe"
    return made


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FineTuning, {"layer_decay": 0.5}),
        (Distillation, {"distance": "logit", "teacher": True}),
        (MaskedDistillation, {}),
        pytest.param(LoRA, {}, marks=pytest.mark.slow),
        pytest.param(RAdapter, {}, marks=pytest.mark.slow),
    ],
)
def test_what_lies_below_and_the_head_stay_bit_for_bit(kind, options, tiny_clip, tmp_path):
    options = options | ({"teacher": cnn()} if "teacher" in options else {})
    before = copy.deepcopy(tiny_clip.state_dict())
    method = build(kind, tiny_clip, lr=1e-2, upper_blocks=2, fixed_head=True, **options)
    fit(method, tmp_path)
    moved = changed(before, method.plain().state_dict())
    assert moved and all(map(is_upper, moved))
    if kind not in (LoRA, RAdapter):
        assert moved == set(filter(is_upper, before))


@pytest.mark.slow
def test_a_head_that_nothing_has_fitted_is_fitted_and_then_fixed(tmp_path):
    student = cnn()
    student.head_from = "chance"
    method = FineTuning(student, lr=1e-2, upper_blocks=1, fixed_head=True)
    assert method.wants_probe()
    random = student.head.weight.clone()
    method.probe(DigitsData(train_images=40, val_images=20, batch_size=8, seed=0))
    fitted = student.head.weight.clone()
    fit(method, tmp_path)
    assert not torch.equal(random, fitted)
    assert torch.equal(student.head.weight, fitted)


@pytest.mark.parametrize(("number", "words"), [(0, "from 1 to 4"), (5, "from 1 to 4")])
def test_a_number_of_blocks_that_is_not_there_is_refused(number, words, tiny_clip):
    with pytest.raises(InputError, match=f"{words}.*got {number}"):
        FineTuning(tiny_clip, upper_blocks=number)


@pytest.mark.slow
def test_the_command_of_the_page_teaches_by_a_small_model_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    (line,) = re.findall(r"^cfmask (train FOLDER .*)$", page.read_text(encoding="utf-8"), re.M)
    photos(Path("photos"))
    names = ["lemon", "lime", "red plum"]
    torch.manual_seed(0)
    teacher = TimmClassifier("test_resnet", False, names, image_size=48)
    teacher.head_from = "probe"
    Path("runs/small").mkdir(parents=True)
    save_classifier(teacher, Path("runs/small") / WEIGHTS)
    stands = {"FOLDER": "photos", "open_clip:ViT-L-14/openai": "open_clip:tiny-clip"}
    words = [stands.get(word, word) for word in shlex.split(line)]
    main([*words, "--run=runs/mine", "--epochs=1", "--precision=32-true", "--workers=0"])
    start, tuned = (
        load_classifier("runs/mine", name).state_dict() for name in (PRETRAINED, WEIGHTS)
    )
    moved = changed(start, tuned)
    assert moved and all(map(is_upper, moved))
