"""Changes of low rank, against weights written out in float64, and folded into a classifier."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from exact_cost import step_cost
from safetensors.torch import load_file
from support.small_methods import fit
from support.training import run

from cfmask import (
    InputError,
    LoRA,
    ModuleClassifier,
    TimmClassifier,
    digits,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import WEIGHTS, check_comes_back
from cfmask.methods.lora import LowRank
from cfmask.runs.cost import forward_cost


def cnn() -> TimmClassifier:
    torch.manual_seed(0)
    return TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)


def moved(method: LoRA) -> LoRA:
    """With changes that are not zero."""
    for one in changes(method).values():
        one.up.data.normal_(0, 0.05)
    return method


def changes(method: LoRA) -> dict[str, LowRank]:
    found = {}
    for name in method.places:
        place, _, kind = name.rpartition(".")
        found[name] = method.classifier.encoder.get_submodule(place).parametrizations[kind][0]
    return found


@pytest.mark.parametrize("net", ["clip", "cnn"])
def test_answers_are_those_of_weights_with_their_changes_added(net, tiny_clip, tmp_path):
    start = (tiny_clip if net == "clip" else cnn()).double()
    slow = copy.deepcopy(start)
    method = moved(LoRA(start, rank=3, alpha=6.0)).eval()
    with torch.no_grad():
        for name, one in changes(method).items():
            place, _, kind = name.rpartition(".")
            weight = getattr(slow.encoder.get_submodule(place), kind)
            for row, up in zip(weight.flatten(1), one.up):
                row += 2.0 * sum(u * down for u, down in zip(up, one.down))
    images = torch.rand(3, 3, 48, 48, dtype=torch.float64)
    answers = method.classifier(images)
    torch.testing.assert_close(answers, slow(images), rtol=1e-9, atol=1e-9)
    assert (answers - slow.head(slow.features(images))).abs().max() < 1e-9
    plain = method.plain()
    assert not [m for m in plain.modules() if isinstance(m, LowRank)]
    torch.testing.assert_close(plain(images), answers, rtol=1e-9, atol=1e-9)
    assert plain.state_dict().keys() == slow.state_dict().keys() == method.tuned().keys()
    for name, value in method.tuned().items():
        torch.testing.assert_close(value, slow.state_dict()[name])
    save_classifier(plain.float(), tmp_path / "x.safetensors")
    loaded = load_classifier(tmp_path / "x.safetensors").double()
    torch.testing.assert_close(loaded(images), answers, rtol=1e-4, atol=1e-4)


def test_every_matrix_of_a_block_has_a_change_and_training_starts_at_the_start(tiny_clip):
    images, before = torch.rand(2, 3, 48, 48), copy.deepcopy(tiny_clip)
    method = LoRA(tiny_clip, rank=2)
    assert torch.equal(method.classifier.eval()(images), before(images))
    layers = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    blocks = len(tiny_clip.encoder.transformer.resblocks)
    wanted = {f"transformer.resblocks.{k}.{name}" for k in range(blocks) for name in layers}
    assert set(method.places) == wanted | {"conv1.weight"}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert all(".0.up" in n or ".0.down" in n or n.startswith("classifier.head") for n in trained)
    shapes = [before.encoder.get_parameter(name).flatten(1).shape for name in method.places]
    own = sum(p.numel() for p in method.parameters() if p.requires_grad)
    head = sum(p.numel() for p in before.head.parameters())
    assert own == head + sum(2 * (out + into) for out, into in shapes)


def test_training_moves_the_changes_and_the_head_alone_and_a_checkpoint_brings_them_back(
    tiny_clip, tmp_path
):
    start = copy.deepcopy(tiny_clip)
    method = LoRA(tiny_clip, rank=2, lr=1e-2, weight_decay=0.0)
    trainer = fit(method, tmp_path, 3)
    kept = method.classifier.state_dict()
    for name, value in start.state_dict().items():
        place, _, kind = name.rpartition(".")
        inside = f"{place}.parametrizations.{kind}.original"
        moves = name.startswith("head.")
        assert torch.equal(kept[inside if inside in kept else name], value) != moves, name
    assert all(one.up.abs().max() > 0 for one in changes(method).values())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    written, again = torch.load(tmp_path / "x.ckpt", weights_only=True), LoRA(start, rank=2)
    again.on_load_checkpoint(written)
    again.load_state_dict(written["state_dict"], strict=False)
    for one, other in zip(again.parameters(), method.parameters()):
        assert torch.equal(one, other)
    images = torch.rand(2, 3, 48, 48)
    found = load_classifier(tmp_path / "x.ckpt")
    torch.testing.assert_close(found(images), method.eval().classifier(images))
    check_comes_back(method.plain())


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_weights(tmp_path):
    options = ["--method=LoRA", "--lr=1e-2", "--trainer.max_epochs=1", "--average=ema:0.5"]
    run(tmp_path / "whole", *options, "--evaluation.pictures=0")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in (WEIGHTS, "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (tmp_path / "cut" / name).unlink()
    run(tmp_path / "cut", *options, "--evaluation.pictures=0", "--resume=true")
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    start = load_file(tmp_path / "whole" / "pretrained.safetensors")
    assert whole.keys() == start.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert sum(not torch.equal(whole[name], start[name]) for name in whole) > 8


@pytest.mark.parametrize("net", ["clip", "cnn"])
def test_the_cost_of_a_step_is_counted(net, tiny_clip):
    method = LoRA(tiny_clip if net == "clip" else cnn(), rank=1).train()
    forward = forward_cost(method.plain(), "32-true", "cpu")
    step = step_cost(method, 4)
    assert method.passes() == pytest.approx(step.flops / forward.flops, rel=0.02)
    # Beside the activations, the changed weights of the step: a copy of the encoder's matrices.
    weights = [value for name, value in method.tuned().items() if name[8:] in method.places]
    kept = 4 * forward.kept_bytes + sum(4 * value.numel() for value in weights)
    assert step.saved_bytes == pytest.approx(kept, rel=0.02)


def test_what_cannot_be_changed_is_refused(tiny_clip):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    classifier = ModuleClassifier(net, class_names=digits.CLASS_NAMES, image_size=8)
    with pytest.raises(InputError, match="for changes of low rank, but Sequential has none"):
        LoRA(classifier)
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}):
        with pytest.raises(InputError, match="but got"):
            LoRA(tiny_clip, **wrong)
