"""Methods of another step or another head, against slow and obvious versions in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import FSDPStrategy
from support.small_methods import fit

from cfmask import (
    L2SP,
    LPFT,
    SPD,
    CLIPood,
    DigitsData,
    Distillation,
    FineTuning,
    InputError,
    RAdapter,
    TimmClassifier,
    digits,
    load_classifier,
)
from cfmask.methods.averages import Average
from cfmask.runs.averaging import TrajectoryAverage


class Seen(pl.Callback):
    """Batches and learning rates of a training."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, module, batch, index):
        rates = {p: g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
        named = {name: rates[p] for name, p in module.classifier.named_parameters()}
        self.steps.append((*batch, named))


def slow(start, steps, decay, rule):
    """AdamW of one tensor after another, then a rule of name, w, start, new w, gradient, rate."""
    net = copy.deepcopy(start)
    named = dict(net.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in named.items()}
    origin = {name: p.detach().clone() for name, p in named.items()}
    for k, (images, labels, rates) in enumerate(steps, 1):
        net.zero_grad()
        log = net(images).log_softmax(1)
        (-log[torch.arange(len(labels)), labels].mean()).backward()
        for name, p in named.items():
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * p.grad)
            second.mul_(0.999).add_(0.001 * p.grad**2)
            step = first / (1 - 0.9**k) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
            with torch.no_grad():
                old, rate = p.detach().clone(), rates[name]
                new = old - rate * decay(name) * old - rate * step
                p.copy_(rule(name, old, origin[name], new, p.grad, rate))
    return net


def pulled(name, old, origin, new, grad, rate):
    return new if name.startswith("head") else new - rate * 2 * 3.0 * (new - origin)


def projected(name, old, origin, new, grad, rate):
    before, after = (old - origin).pow(2).sum().sqrt(), (new - origin).pow(2).sum().sqrt()
    if (grad * (old - origin)).sum() <= 0 or after == 0:
        return new
    share = min(max(float((after - before) / after), 0.0), 1.0)
    return new - 0.7 * share * (new - origin)


RULES = {
    L2SP: ({"pull": 3.0}, pulled, lambda name: 0.1 if name.startswith("head") else 0.0),
    SPD: ({"strength": 0.7}, projected, lambda name: 0.0),
}


@pytest.mark.parametrize(("kind", "net"), [(L2SP, "cnn"), (SPD, "clip")])
def test_steps_are_those_of_the_slow_version(kind, net, tiny_clip, tmp_path):
    options, rule, decay = RULES[kind]
    torch.manual_seed(0)
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    classifier = (tiny_clip if net == "clip" else cnn).double()
    start, seen = copy.deepcopy(classifier).eval(), Seen()
    method = kind(classifier, lr=1e-2, head_lr=3e-2, warmup=0.5, **options)
    fit(method, tmp_path, 4, callbacks=[seen], precision="64-true")
    expected = slow(start, seen.steps, decay, rule)
    for (name, got), other in zip(classifier.named_parameters(), expected.parameters()):
        np.testing.assert_allclose(
            got.detach().numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-8, err_msg=name
        )
    assert not torch.equal(classifier.head.bias, start.head.bias)


def test_a_tensor_that_has_not_moved_divides_by_nothing(tiny_clip, tmp_path):
    """The first step of AdamW leaves a tensor without gradient where it is."""
    tiny_clip.encoder.proj.requires_grad_(True)
    method = SPD(tiny_clip, strength=1.0, lr=1e-2, warmup=0.0)
    zero = tiny_clip.head.bias
    zero.register_hook(torch.zeros_like)
    fit(method, tmp_path, 2)
    assert all(p.isfinite().all() for p in tiny_clip.parameters())
    assert torch.equal(zero, method.start.head.bias)


def test_a_checkpoint_leaves_the_anchor_out(tiny_clip, tmp_path):
    method = L2SP(tiny_clip)
    trainer = fit(method, tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"classifier"}
    # A run that goes on takes the anchor from its start.
    again = L2SP(copy.deepcopy(tiny_clip))
    again.start_from(method.start)
    assert torch.equal(again.start.encoder.proj, method.start.encoder.proj)


def test_lp_ft_is_fine_tuning_from_the_probed_head(tiny_clip, tmp_path):
    probed = copy.deepcopy(tiny_clip)
    method = LPFT(tiny_clip, lr=1e-3)
    assert method.wants_probe() and type(tiny_clip.head) is torch.nn.Linear
    data = DigitsData(40, 20, batch_size=8)
    method.probe(data)
    assert not method.wants_probe()
    images = torch.stack([data.train_set[i][0] for i in range(40)]).float() / 255
    labels = torch.tensor([data.train_set[i][1] for i in range(40)])
    # Sound head: the regression separates 40 images in 64 dimensions; the head from text does not.
    assert (tiny_clip(images).argmax(1) == labels).float().mean() > 0.95
    assert (probed(images).argmax(1) == labels).float().mean() < 0.95
    plain = FineTuning(copy.deepcopy(tiny_clip), lr=1e-3)
    for one in (plain, method):
        pl.seed_everything(0, verbose=False)
        trainer = fit(one, tmp_path, 2)
    for own, other in zip(method.classifier.parameters(), plain.classifier.parameters()):
        assert torch.equal(own, other)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = load_classifier(tmp_path / "x.ckpt")
    assert torch.equal(loaded(images[:2]), tiny_clip.eval()(images[:2]))


def test_the_margin_is_the_similarity_of_the_names(tiny_clip, digit_batch):
    images, labels = digit_batch[0].double(), digit_batch[1]
    method = CLIPood(tiny_clip.double(), margin=0.3)
    text = tiny_clip.head.weight.detach()
    scale = text.norm(dim=1).mean()
    text = text / text.norm(dim=1, keepdim=True)
    total = 0.0
    for image, label in zip(images, labels):
        f = tiny_clip.features(image[None])[0]
        f = f / f.norm() - 0.3 * text[label]
        scores = torch.stack([scale * (f * text[j]).sum() for j in range(10)])
        total += (scores.logsumexp(0) - scores[label]).item() / len(labels)
    assert method.losses(images, labels)["task"].item() == pytest.approx(total, rel=1e-5)
    # The paper adds margin · (1 - similarity) to the logits instead.
    logits = tiny_clip(images).detach()
    paper = F.cross_entropy(logits + 0.3 * scale * (1 - text @ text.T)[labels], labels)
    assert float(method.task_loss(logits, labels)) == pytest.approx(float(paper), rel=1e-5)
    hard = F.one_hot(labels, 10).double()
    assert torch.isclose(method.task_loss(logits, hard), method.task_loss(logits, labels))


def test_the_head_from_text_is_frozen_and_has_to_be_there(tiny_clip, tmp_path):
    before = copy.deepcopy(tiny_clip)
    fit(CLIPood(tiny_clip, lr=1e-2), tmp_path, 2)
    assert torch.equal(tiny_clip.head.weight, before.head.weight)
    assert not torch.equal(tiny_clip.encoder.proj, before.encoder.proj)
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    with pytest.raises(InputError, match="made from text for CLIPood, but that of test_resnet"):
        CLIPood(cnn)


@pytest.mark.parametrize(
    ("kind", "wrong"), [(L2SP, {"pull": -1}), (SPD, {"strength": -1}), (CLIPood, {"margin": -1})]
)
def test_numbers_without_meaning_are_refused(kind, wrong, tiny_clip):
    with pytest.raises(InputError, match="of at least 0, but got -1"):
        kind(tiny_clip, **wrong)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SPD, {}), (RAdapter, {}), (Distillation, {"teacher_average": "ema"}), (None, {})],
)
def test_weights_in_parts_are_refused(kind, options, tiny_clip):
    sharded = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true")
    method = (kind or FineTuning)(tiny_clip, **options)
    method.trainer = sharded
    with pytest.raises(InputError, match=r"another strategy than FSDP for .*; use ddp"):
        if kind:
            method.on_fit_start()
        else:
            TrajectoryAverage(Average("ema")).setup(sharded, method, "fit")
