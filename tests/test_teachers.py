"""Teachers that move, and teachers that are another model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.averages import Path as WeightsPath
from support.averages import weights_of
from support.small_methods import build, fit
from support.training import STEP, dies, run

from cfmask import (
    ContextMask,
    Counterfactual,
    DigitsData,
    Distillation,
    InputError,
    MaskedDistillation,
    NoFill,
    TimmClassifier,
    digits,
    load_classifier,
)
from cfmask.checkpoint import WEIGHTS
from cfmask.commands.train_words import prepared
from cfmask.methods.averages import Average

DISTILLING = [Distillation, MaskedDistillation]


@pytest.fixture
def cnn() -> TimmClassifier:
    """Another encoder, of another width, whose head knows the digits."""
    torch.manual_seed(1)
    made = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    made.head_from = "probe"
    return made


@pytest.mark.parametrize(
    ("kind", "text", "every"),
    [(Distillation, "ema:0.6", 1), (MaskedDistillation, "ema:0.6", 2), (Distillation, "beta", 2)],
)
def test_a_teacher_that_moves_is_the_average_of_the_student(kind, text, every, tiny_clip, tmp_path):
    path = WeightsPath()
    method = build(kind, tiny_clip, lr=1e-2, teacher_average=text, teacher_every=every)
    fit(method, tmp_path, 5, callbacks=[path])
    seen = path.weights[::every]
    counts = weights_of(Average.of(text), len(seen) - 1)
    for name, value in method.teacher.state_dict().items():
        expected = sum(count * one[name] for count, one in zip(counts, seen))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_a_checkpoint_holds_a_teacher_that_moves_and_no_other(tiny_clip, tmp_path):
    method = build(Distillation, copy.deepcopy(tiny_clip), lr=1e-2, teacher_average="ema:0.5")
    trainer = fit(method, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    again = Distillation(tiny_clip, teacher_average="ema:0.5")
    again.on_load_checkpoint(kept)
    for name, value in again.teacher.state_dict().items():
        assert torch.equal(value, method.teacher.state_dict()[name])
    assert not torch.equal(again.teacher.encoder.proj, tiny_clip.encoder.proj)
    loaded = load_classifier(tmp_path / "x.ckpt")
    assert torch.equal(loaded.encoder.proj, method.classifier.encoder.proj)
    plain: dict[str, object] = {}
    Distillation(tiny_clip).on_save_checkpoint(plain)
    assert "teacher" not in plain


@pytest.mark.parametrize("distance", ["feature", "relative_feature", "logit"])
@pytest.mark.parametrize("kind", DISTILLING)
def test_another_model_teaches_through_logits_or_a_map(kind, distance, tiny_clip, cnn, digit_batch):
    images, labels = digit_batch
    method = build(kind, tiny_clip, teacher=cnn, distance=distance, distill_weight=2.0)
    method = method.double()
    seen: list[torch.Tensor] = []
    features = method.teacher.features
    method.teacher.features = lambda images, *more: seen.append(images) or features(images, *more)
    method.log = lambda *args, **options: None
    got = method.losses(images.double(), labels)["distill"]
    (shown,) = seen
    taught = cnn.double().eval()
    with torch.no_grad():
        if distance == "logit":
            target = F.softmax(taught(shown) / 10, -1)
            answer = F.log_softmax(method.classifier(shown) / 10, -1)
            expected = 2 * 100 * (target * (target.log() - answer)).sum(-1).mean()
        else:
            target, student = taught.features(shown), method.classifier.features(shown)
            mapped = student @ method.bridge.weight.T + method.bridge.bias
            scale = target.square().mean() if distance == "relative_feature" else 1
            expected = 2 * (mapped - target).square().mean() / scale
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0, check_dtype=False)
    assert math.isnan(method.passes())


def test_the_map_is_trained_and_no_file_of_the_student_has_it(tiny_clip, cnn, tmp_path):
    method = Distillation(tiny_clip, teacher=cnn, lr=1e-2)
    before = method.bridge.weight.detach().clone()
    trainer = fit(method, tmp_path, 2)
    assert not torch.equal(before, method.bridge.weight)
    assert torch.equal(method.teacher.head.weight, cnn.head.weight)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert "bridge.weight" in torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    names = load_classifier(tmp_path / "x.ckpt").state_dict().keys()
    assert names == tiny_clip.state_dict().keys()


def test_another_run_of_the_same_encoder_teaches_directly(tiny_clip, digit_batch):
    other = copy.deepcopy(tiny_clip)
    with torch.no_grad():
        other.encoder.proj.mul_(1.5)
    method = Distillation(tiny_clip, teacher=other, distill_weight=1.0)
    got = method.losses(*digit_batch)["distill"]
    # The projection is the last step, so all features are 1.5 times as long.
    expected = (0.5 * tiny_clip.features(digit_batch[0])).square().mean()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    assert method.passes() == Distillation(tiny_clip).passes()


def test_what_cannot_teach_is_refused_in_one_line(tiny_clip, cnn):
    large = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=96)
    with pytest.raises(InputError, match=r"images of \(48, 48\) px, as tiny-clip takes"):
        Distillation(tiny_clip, teacher=large)
    cnn.head_from = "chance"
    with pytest.raises(InputError, match="use distance: relative_feature"):
        Distillation(tiny_clip, teacher=cnn, distance="logit")
    with pytest.raises(InputError, match="Expected a teacher by its class"):
        Distillation(tiny_clip, teacher="timm:resnet50")
    for more in ({"teacher": cnn}, {"bf16_teacher": True}):
        with pytest.raises(InputError, match="a copy of the student, in full precision"):
            Distillation(tiny_clip, teacher_average="ema", **more)
    with pytest.raises(InputError, match="teacher_every of at least 1"):
        Distillation(tiny_clip, teacher_every=0)
    none = Counterfactual(ContextMask(0.5), NoFill())
    method = MaskedDistillation(tiny_clip, none, teacher=cnn)
    method.check(DigitsData())
    method.teacher.encoder.layer1 = torch.nn.Sequential(cnn.encoder.layer1, Sorting())
    with pytest.raises(InputError, match="use a fill"):
        method.check(DigitsData())


class Sorting(torch.nn.Module):
    """Puts pixels in an order in which nothing tells the hidden ones."""

    def forward(self, x):
        return x.sort(-1).values


def test_a_teacher_is_named_as_a_model_is():
    words = prepared(["--teacher", "timm:test_vit/random"])
    assert words[:2] == ["--model.teacher", "TimmClassifier"]
    assert words[-4:] == ["--model.distance", "relative_feature", "--model.distill_weight", "4"]
    words = prepared(["--teacher=runs/x", "--model.distance", "logit"])
    assert words[1:4] == ["SavedClassifier", "--model.teacher.path", "runs/x"]
    assert words[4:] == ["--model.distance", "logit"]
    with pytest.raises(InputError, match=r"Expected --teacher timm:NAME.* but got resnet50"):
        prepared(["--teacher", "resnet50"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model.teacher_average=ema:0.9", "--model.teacher_every=2"],
        ["--teacher=timm:test_resnet/random", "--model.teacher.image_size=48"],
    ],
)
def test_a_run_that_is_killed_goes_on_with_its_teacher(options, tmp_path):
    run(tmp_path / "whole", *options)
    assert dies(tmp_path / "cut", STEP, 9, *options)
    run(tmp_path / "cut", *options, "--resume=true")
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
