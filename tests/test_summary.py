"""What a run says of itself before it starts, and the estimate of its cost."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from exact_cost import step_cost
from support.flops import products

from cfmask import (
    AttentionRollout,
    Counterfactual,
    DigitsData,
    Distillation,
    FineTuning,
    GradCAM,
    LinearProbe,
    MaskedDistillation,
    ObjectMask,
    PackageCAM,
    RandomMask,
    SingleFill,
    TimmClassifier,
)
from cfmask.runs.cost import forward_cost, memory
from cfmask.runs.summary import Announce, summarise
from cfmask.terminal import show_table

OBJECT = Counterfactual(ObjectMask(0.3), SingleFill())
RANDOM = Counterfactual(RandomMask(0.5), SingleFill())


def masked(classifier, make=OBJECT, **options):
    return MaskedDistillation(classifier, make, **options)


BUILDS = {
    "linear probe": LinearProbe,
    "fine-tuning": FineTuning,
    "distillation": Distillation,
    "masked": masked,
    "masked at random": lambda c: masked(c, RANDOM),
    "of the loss": lambda c: masked(c, relevance_of="loss"),
    "rollout": lambda c: masked(c, relevance=AttentionRollout()),
    "Grad-CAM": lambda c: masked(c, relevance=GradCAM()),
    "two kinds": lambda c: masked(c, [OBJECT, RANDOM], two_backwards=False),
    "checkpointed": lambda c: masked(c, grad_checkpointing=True),
}


@pytest.mark.parametrize("name", BUILDS)
def test_the_estimate_is_close_to_the_exact_count(tiny_clip, name):
    method = BUILDS[name](tiny_clip)
    forward = forward_cost(tiny_clip)
    exact = step_cost(method, 16)
    assert method.passes() * forward.flops == pytest.approx(exact.flops, rel=0.1)
    estimate = memory(method, 16, forward)["activations"]
    if name == "linear probe":
        assert estimate < exact.saved_bytes + 1e5
    # A block that is computed again is left out.
    elif name != "checkpointed":
        assert estimate == pytest.approx(exact.saved_bytes, rel=0.25)


def test_the_estimate_for_a_gpu_counts_no_attention_map(tiny_clip):
    exact = step_cost(FineTuning(tiny_clip), 128, "bf16-mixed", fused=True).saved_bytes
    fused, maps = (forward_cost(tiny_clip, "bf16-mixed", kind) for kind in ("cuda", "cpu"))
    assert memory(FineTuning(tiny_clip), 128, fused)["activations"] == pytest.approx(exact, rel=0.1)
    assert fused.kept_bytes < maps.kept_bytes
    assert fused.flops == maps.flops


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_estimate_holds_for_cnns_and_in_reduced_precision(small_cnn, precision):
    method = masked(small_cnn, relevance=GradCAM())
    forward, exact = forward_cost(small_cnn, precision), step_cost(method, 8, precision)
    assert method.passes() * forward.flops == pytest.approx(exact.flops, rel=0.1)
    estimate = memory(method, 8, forward)["activations"]
    assert estimate == pytest.approx(exact.saved_bytes, rel=0.25)


def test_a_depthwise_cnn_costs_what_its_products_are():
    cnn = TimmClassifier("efficientnet_lite0", False, ["a", "b"], image_size=64)
    assert forward_cost(cnn).flops == sum(products(cnn).values()) + 2 * cnn.head.weight.numel()


def test_a_map_of_one_pass_a_channel_is_not_counted_as_one(tiny_clip, tmp_path, capsys):
    assert masked(tiny_clip, relevance=PackageCAM("GradCAM")).passes() == 7 + 3
    # Masks that need no map make none.
    random = masked(tiny_clip, RANDOM, relevance=PackageCAM("ScoreCAM"))
    trainer = fitted(random, tmp_path / "summary.json", max_steps=1)
    assert json.loads((tmp_path / "summary.json").read_text())["passes"] == 7
    summary = summarise(trainer, masked(tiny_clip, relevance=PackageCAM("ScoreCAM")))
    assert (summary.passes, summary.flops_per_image) == (None, None)
    show_table(summary.table())
    assert "how often the encoder runs" in capsys.readouterr().out
    summary.save(tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["flops"] is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_count_a_forked_process_computes_gradients(tiny_clip):
    forward_cost(tiny_clip)
    weight = torch.ones(2, requires_grad=True)
    (2 * weight).sum().backward()
    if not (child := os.fork()):
        try:
            (3 * weight).sum().backward()
            os._exit(int(weight.grad.tolist() != [5, 5]))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Counting(FineTuning):
    """A method of one's own whose losses leave traces."""

    def __init__(self, classifier):
        super().__init__(classifier)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def losses(self, images, labels):
        self.calls += 1
        self.seen += len(images)
        self.log("draw", torch.rand(()) + random.random() + np.random.rand())
        return super().losses(images, labels)


class Noisy(torch.nn.Module):
    """An encoder that draws and counts at each pass, whatever its mode."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.register_buffer("passes", torch.zeros(()))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        self.passes += 1
        noise = torch.rand(()) + random.random() + np.random.rand()
        return self.layer(images.mean((2, 3))) + noise


def test_counting_does_not_touch_the_method(tiny_clip, tmp_path):
    tiny_clip.encoder = Noisy()
    tiny_clip.head = torch.nn.Linear(4, 10)
    method = Counting(tiny_clip)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    forward = forward_cost(tiny_clip)
    assert forward.flops == 2 * (3 * 4 + 4 * 10)
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (method.calls, tiny_clip.encoder.calls) == (0, 0)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    # By a whole run: as many calls as steps.
    fitted(method, tmp_path / "summary.json", max_steps=3)
    assert method.calls == 3
    assert method.seen == 3 * 16


class ByValue(torch.nn.Module):
    """An encoder whose shapes depend on values."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, images):
        bright = [image[:, image[0] > image.mean().item()].mean(1) for image in images]
        return self.layer(torch.stack(bright))


def test_an_encoder_that_cannot_be_counted_trains_all_the_same(tiny_clip, tmp_path, capsys):
    tiny_clip.encoder = ByValue()
    tiny_clip.head = torch.nn.Linear(4, 10)
    path = tmp_path / "summary.json"
    fitted(FineTuning(tiny_clip), path, max_steps=1)
    said = json.loads(path.read_text())
    assert (said["flops"], said["flops_per_image"]) == (None, None)
    assert "activations" not in said["memory"]
    table = capsys.readouterr().out
    assert "not counted: this encoder" in table
    assert "activations not counted" in table


def fitted(method, path, **options):
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        callbacks=[Announce(path)], **options,
    )  # fmt: skip
    data = DigitsData(50, 10, batch_size=16)
    trainer.fit(method, data)
    return trainer


def test_a_run_says_what_it_does_before_it_does_it(tiny_clip, tmp_path, capsys):
    path = tmp_path / "summary.json"
    trainer = fitted(masked(tiny_clip), path, max_epochs=2, accumulate_grad_batches=2)
    said = json.loads(path.read_text())
    assert said["steps"] == trainer.global_step == 4
    assert said["batch"] == 32
    assert (said["train_images"], said["val_images"], said["classes"]) == (50, 10, 10)
    assert said["trainable"] == said["parameters"] == said["teacher"]
    assert said["flops"] == said["flops_per_image"] * 32 * 4
    assert said["memory_bytes"] == sum(said["memory"].values())
    table = capsys.readouterr().out
    assert "MaskedDistillation of tiny-clip" in table
    assert "32 images a step: 16 on a device at a time, devices 1, passes accumulated 2" in table


def test_what_is_frozen_is_said(tiny_clip, tmp_path):
    trainer = fitted(LinearProbe(tiny_clip), None, max_steps=3)
    summary = summarise(trainer, trainer.lightning_module)
    assert summary.trainable == tiny_clip.head.weight.numel() + 10
    assert summary.teacher == 0
    assert summary.steps == 3
