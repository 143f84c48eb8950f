"""Mixup, cutmix, label smoothing, learning rates by layer, and augmentation by short name."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import load_file
from support.small_methods import build, count_passes
from support.training import STEP, dies, run
from timm.optim import param_groups_layer_decay
from torchvision.transforms import v2

from cfmask import (
    Distillation,
    FineTuning,
    InputError,
    MaskedDistillation,
    TimmClassifier,
)
from cfmask.checkpoint import WEIGHTS
from cfmask.commands.train_model import command_line
from cfmask.commands.train_words import prepared
from cfmask.methods.mixing import Mixing
from cfmask.methods.rates import Rates, layer_scales

KINDS = [FineTuning, Distillation, MaskedDistillation]


def test_label_smoothing_is_the_formula(small_cnn):
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    targets = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    method = FineTuning(small_cnn, label_smoothing=0.2)
    torch.testing.assert_close(method.task_loss(logits, labels), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_is_mixed_with_itself_rolled_by_one(kind):
    images = torch.rand(4, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 1])
    torch.manual_seed(3)
    mixed, targets = Mixing(**{"mixup": 0.0, "cutmix": 0.0, kind: 1.0}, classes=3)(images, labels)
    # The share of the image itself, from the first label.
    share = float(targets[0, 0])
    assert 0 < share < 1
    own, other = F.one_hot(labels, 3).float(), F.one_hot(labels.roll(1), 3).float()
    torch.testing.assert_close(targets, share * own + (1 - share) * other)
    if kind == "mixup":
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    else:
        kept = (mixed == images).all(1)
        assert torch.equal(kept[0], kept[1])
        assert kept[0].float().mean() == pytest.approx(share, abs=1e-6)
        pasted = torch.where(kept[:, None], images, images.roll(1, 0))
        assert torch.equal(mixed, pasted)


def test_either_kind_comes_where_both_are_wanted():
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    mixing = Mixing(1.0, 1.0, 2)
    kinds = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, _ = mixing(images, labels)
        # Cutmix gives pixels of one of the two images, mixup none.
        kinds.add(bool(((mixed == images) | (mixed == images.roll(1, 0))).all()))
    assert kinds == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_task_sees_mixed_images(kind, tiny_clip, digit_batch):
    """The distance to the teacher is that of a step without mixing; the task's loss is not."""
    images, labels = digit_batch
    plain, mixing = (
        build(kind, copy.deepcopy(tiny_clip), **more).eval() for more in ({}, {"mixup": 1.0})
    )
    found = []
    for method in (plain, mixing):
        torch.manual_seed(0)
        relevance_first = method.losses(images, labels)
        found.append(relevance_first)
    assert not torch.isclose(found[0]["task"], found[1]["task"])
    torch.manual_seed(0)
    mixed, targets = mixing.mixing(images, labels)
    expected = F.cross_entropy(tiny_clip(mixed), targets)
    torch.testing.assert_close(found[1]["task"], expected, rtol=1e-4, atol=1e-5)
    if kind is Distillation:
        torch.testing.assert_close(found[0]["distill"], found[1]["distill"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_cost_counts_the_passes_of_a_mixed_step(kind, tiny_clip, digit_batch):
    counted = {}
    for mixup in (0.0, 1.0):
        method = build(kind, copy.deepcopy(tiny_clip), mixup=mixup)
        passes = count_passes(method.classifier)
        method.losses(*digit_batch)
        counted[mixup] = (len(passes), method.passes())
    more = counted[1.0][0] - counted[0.0][0]
    assert more == (kind is not FineTuning)
    # Of a clean pass that only makes relevance nothing goes back through the whole encoder.
    assert counted[1.0][1] - counted[0.0][1] == {FineTuning: 0, Distillation: 3}.get(kind, 1)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_rates_by_layer_are_timms(name):
    encoder = TimmClassifier(name, False, ["a", "b"]).encoder
    scales = layer_scales(encoder, 0.5)
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(encoder, layer_decay=0.5)
        for p in group["params"]
    }
    for parameter_name, parameter in encoder.named_parameters():
        assert scales[parameter_name] == theirs[id(parameter)], parameter_name
    assert len(set(scales.values())) > 2


def test_a_clip_has_a_rate_for_every_block(tiny_clip):
    blocks = len(tiny_clip.encoder.transformer.resblocks)
    scales = layer_scales(tiny_clip.encoder, 0.5)
    assert scales["conv1.weight"] == 0.5**blocks
    for k in range(blocks):
        assert scales[f"transformer.resblocks.{k}.mlp.c_fc.weight"] == 0.5 ** (blocks - 1 - k)
    assert scales["proj"] == scales["ln_post.weight"] == 1
    resnet = ModifiedResNet([1, 1, 1, 1], 8, 1, image_size=32, width=8)
    of_layers = [layer_scales(resnet, 0.5)[f"layer{k}.0.conv1.weight"] for k in (1, 2, 3, 4)]
    assert of_layers == sorted(set(of_layers))


def test_every_parameter_is_trained_at_its_own_rate(tiny_clip):
    method = FineTuning(tiny_clip, lr=1.0, layer_decay=0.5, head_lr=7.0)
    groups = method.rates.groups(method, tiny_clip)
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    scales = layer_scales(tiny_clip.encoder, 0.5)
    for name, parameter in tiny_clip.encoder.named_parameters():
        assert rates[id(parameter)] == scales[name]
    assert {rates[id(p)] for p in tiny_clip.head.parameters() if p.requires_grad} == {7.0}


def test_unknown_layers_and_numbers_are_refused(tiny_clip):
    with pytest.raises(InputError, match="the layers of Linear are not known"):
        layer_scales(torch.nn.Linear(2, 2), 0.5)
    for wrong in ({"lr": 0.0}, {"lr": 1.0, "layer_decay": 1.5}, {"lr": 1.0, "head_lr": -1.0}):
        with pytest.raises(InputError, match="Expected"):
            Rates(**wrong)
    for wrong in ({"mixup": -1.0}, {"cutmix": math.nan}, {"label_smoothing": 1.0}):
        with pytest.raises(InputError, match="Expected"):
            FineTuning(tiny_clip, **wrong)
    with pytest.raises(InputError, match="relevance_of: logit with mixup"):
        build(MaskedDistillation, tiny_clip, mixup=1.0, relevance_of="loss")


@pytest.mark.parametrize(
    ("word", "kind"), [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide)]
)
def test_augmentation_by_short_name(word, kind, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
    words = [str(tmp_path), "--model", "timm:test_vit/random", "--augment", word]
    words += ["--mixup", "0.8", "--cutmix=1", "--label-smoothing", "0.1", "--layer-decay", "0.7"]
    with pytest.raises(SystemExit):
        command_line([*words, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    found = config["data"]["init_args"]["augmentation"]
    assert found["class_path"].endswith(kind.__name__)
    method = config["model"]["init_args"]
    expected = {"mixup": 0.8, "cutmix": 1, "label_smoothing": 0.1, "layer_decay": 0.7}
    assert {key: method[key] for key in expected} == expected
    with pytest.raises(InputError, match="Nearest: randaugment"):
        prepared([str(tmp_path), "--augment", "randaug"])


@pytest.mark.slow
def test_a_mixed_run_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    options = ["--model.mixup=0.8", "--model.cutmix=1", "--model.layer_decay=0.7"]
    run(tmp_path / "whole", *options)
    assert dies(tmp_path / "cut", STEP, 9, *options)
    run(tmp_path / "cut", *options, "--resume=true")
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
