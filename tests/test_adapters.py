"""Adapters, against the layers written out in float64, and folded into an ordinary classifier."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from exact_cost import step_cost
from safetensors.torch import load_file
from support.small_methods import fit
from support.training import run

from cfmask import (
    InputError,
    ModuleClassifier,
    RAdapter,
    TimmClassifier,
    digits,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import WEIGHTS, check_comes_back
from cfmask.methods.adapters import Adapted
from cfmask.runs.cost import forward_cost


def made(net: str, clip, **options) -> RAdapter:
    torch.manual_seed(0)
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    return RAdapter((clip if net == "clip" else cnn).double(), **options)


def moved(method: RAdapter) -> RAdapter:
    """With adapters that are not zero, their averages others than they."""
    for one in method.adapted.values():
        for p in (*one.change.parameters(), *one.average.parameters()):
            p.data.add_(0.05 * torch.randn_like(p))
    return method


@pytest.mark.parametrize(("net", "rank"), [("clip", None), ("cnn", 2)])
def test_the_folded_classifier_answers_as_the_adapted_one(net, rank, tiny_clip, tmp_path):
    method = moved(made(net, tiny_clip, rank=rank)).eval()
    images = torch.rand(3, 3, 48, 48, dtype=torch.float64)
    answers = method.classifier(images)
    plain = method.plain()
    assert not [m for m in plain.modules() if isinstance(m, Adapted)]
    torch.testing.assert_close(plain(images), answers, rtol=1e-9, atol=1e-9)
    assert plain.state_dict().keys() == method.tuned().keys()
    for name, value in method.tuned().items():
        torch.testing.assert_close(value, plain.state_dict()[name])
    save_classifier(plain.float(), tmp_path / "x.safetensors")
    loaded = load_classifier(tmp_path / "x.safetensors").double()
    torch.testing.assert_close(loaded(images), answers, rtol=1e-4, atol=1e-4)


def test_an_output_is_changed_as_the_source_says(tiny_clip):
    method = moved(made("clip", tiny_clip, drop=0.4, rescale=0.5))
    one = method.adapted["transformer.resblocks.0.mlp.c_proj"]
    x = torch.rand(6, 5, one.layer.in_features, dtype=torch.float64)
    z = x @ one.layer.weight.T + one.layer.bias
    (matrix,), scale = one.change.factors, one.change.scale
    torch.manual_seed(3)
    got = one.train()(x)
    torch.manual_seed(3)
    kept = torch.empty(6, dtype=torch.float64).bernoulli_(0.6)
    assert 0 < kept.sum() < 6
    expected = [row + keep * scale / 0.6 * row @ matrix for row, keep in zip(z, kept)]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-9, atol=1e-12)
    # After training: the averages, half of the scale, nothing dropped.
    (matrix,), scale = one.average.factors, one.average.scale
    torch.testing.assert_close(one.eval()(x), z + 0.5 * scale * z @ matrix, rtol=1e-9, atol=1e-12)


def test_the_layers_are_the_last_of_attention_and_mlp(tiny_clip):
    names = {
        f"transformer.resblocks.{k}.{layer}"
        for k in range(len(tiny_clip.encoder.transformer.resblocks))
        for layer in ("attn.out_proj", "mlp.c_proj")
    }
    width = tiny_clip.encoder.conv1.out_channels
    method = RAdapter(tiny_clip)
    assert set(method.adapted) == names
    trained = [p for p in method.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == len(names) * (width**2 + 1)


def test_training_moves_the_adapters_alone_and_their_average_follows(tiny_clip, tmp_path):
    start = copy.deepcopy(tiny_clip)
    method = RAdapter(tiny_clip, decay=0.6, lr=1e-2, weight_decay=0.0)
    path = []
    follow = method.optimizer_step

    def watched(*args, **options):
        follow(*args, **options)
        path.append([p.detach().double().numpy() for p in changes.parameters()])

    changes = method.adapted["transformer.resblocks.1.attn.out_proj"].change
    path.append([p.detach().double().numpy() for p in changes.parameters()])
    method.optimizer_step = watched
    trainer = fit(method, tmp_path, 3)
    counts = [0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4]
    average = method.adapted["transformer.resblocks.1.attn.out_proj"].average
    for k, value in enumerate(average.parameters()):
        expected = sum(count * one[k] for count, one in zip(counts, path))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-7)
    own = method.classifier.state_dict()
    for name, value in start.state_dict().items():
        there = own.get(name, own.get(name.replace("proj.", "proj.layer.")))
        assert torch.equal(there, value), name
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    kept, again = torch.load(tmp_path / "x.ckpt", weights_only=True), RAdapter(copy.deepcopy(start))
    again.start_from(start)
    again.on_load_checkpoint(kept)
    again.load_state_dict(kept["state_dict"], strict=False)
    for one, other in zip(again.parameters(), method.parameters()):
        assert torch.equal(one, other)
    images = torch.rand(2, 3, 48, 48)
    loaded = load_classifier(tmp_path / "x.ckpt")
    torch.testing.assert_close(loaded(images), method.eval().classifier(images))
    assert (loaded(images) - start(images)).abs().max() > 1e-3
    check_comes_back(method.plain())


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_weights(tmp_path):
    options = ["--method=RAdapter", "--lr=1e-2", "--trainer.max_epochs=1"]
    options += ["--average=ema:0.5", "--evaluation.pictures=0"]
    run(tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in (WEIGHTS, "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (tmp_path / "cut" / name).unlink()
    run(tmp_path / "cut", *options, "--resume=true")
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    start = load_file(tmp_path / "whole" / "pretrained.safetensors")
    assert whole.keys() == start.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    changed = {name for name in whole if not torch.equal(whole[name], start[name])}
    assert changed and all(name.split(".")[-2] in ("out_proj", "c_proj") for name in changed)


def test_the_cost_of_a_step_of_a_cnn_is_counted(tiny_clip):
    method = made("cnn", tiny_clip).float().train()
    forward = forward_cost(method.classifier, "32-true", "cpu")
    step = step_cost(method, 4)
    assert method.passes() == pytest.approx(step.flops / forward.flops, rel=0.02)
    assert 4 * method.graphs() * forward.kept_bytes == pytest.approx(step.saved_bytes, rel=0.02)


def test_what_cannot_be_adapted_is_refused(tiny_clip):
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten())
    net = torch.nn.Sequential(wide, torch.nn.Linear(32, 10))
    classifier = ModuleClassifier(net, class_names=digits.CLASS_NAMES, image_size=8)
    with pytest.raises(InputError, match="do not widen for adapters, but Sequential has none"):
        RAdapter(classifier)
    for wrong in ({"rank": 0}, {"drop": 1.0}, {"rescale": -1.0}, {"decay": 2.0}):
        with pytest.raises(InputError, match="but got"):
            RAdapter(tiny_clip, **wrong)
