"""The exact count of a step, for the tables of the pages."""

from __future__ import annotations

import pytest
import torch
from exact_cost import SavedBytes, StepCost, exact_memory, step_cost
from step_cost import methods, step
from support.flops import products
from torch.utils.flop_counter import FlopCounterMode

from cfmask import (
    ContextMask,
    Counterfactual,
    Distillation,
    FineTuning,
    GradCAM,
    LinearProbe,
    MaskedDistillation,
    NoFill,
    ObjectMask,
    RandomMask,
    SingleFill,
    TimmClassifier,
)


def forward_flops(classifier) -> float:
    """Multiply-adds times two of a plain ViT whose last block is computed for one token alone."""
    tower = classifier.encoder
    (rows, columns), width = classifier.grid, tower.conv1.out_channels
    patches, blocks = rows * columns, len(tower.transformer.resblocks)
    length = patches + 1
    hidden = tower.transformer.resblocks[0].mlp.c_fc.out_features

    def block(queries: int) -> int:
        projections = (2 * queries + 2 * length) * width**2
        return projections + 2 * queries * length * width + 2 * queries * width * hidden

    pixels = tower.conv1.weight[0].numel()
    total = patches * pixels * width + (blocks - 1) * block(length) + block(1)
    return 2 * (total + tower.proj.numel() + classifier.head.weight.numel())


def saved_in_forward(method, images, labels) -> int:
    """Bytes that autograd holds at the end of a forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        # Holding it keeps its address from being used again.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(method.losses(images, labels).values())
    assert loss.requires_grad
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.fixture
def masked(tiny_clip):
    return MaskedDistillation(tiny_clip, Counterfactual(ObjectMask(0.3), SingleFill()))


def test_flops_are_those_of_the_closed_form(tiny_clip):
    forward = forward_flops(tiny_clip)
    linear = step_cost(LinearProbe(tiny_clip), 4).flops
    # The head's own backward is one product; nothing else has one.
    assert linear == pytest.approx(forward + 2 * tiny_clip.head.weight.numel(), rel=1e-3)
    tiny_clip.encoder.requires_grad_(True)
    # Backward is two products for each forward one, but for the pixels, which get no gradient.
    pixels = 2 * tiny_clip.encoder.conv1.weight.numel() * 36
    plain = step_cost(FineTuning(tiny_clip), 4).flops
    assert plain == pytest.approx(3 * forward - pixels, rel=0.02)
    assert step_cost(Distillation(tiny_clip), 4).flops == pytest.approx(plain + forward, rel=0.01)


@pytest.mark.parametrize("model", ["efficientnet_lite0", "regnety_002"])
def test_the_groups_of_convolutions_are_counted(model):
    cnn = TimmClassifier(model, False, ["a", "b"], image_size=64)
    layers = products(cnn)
    groups = {layer.groups for layer in layers}
    assert 1 in groups and len(groups) > 1
    forward = sum(layers.values()) + 2 * cnn.head.weight.numel()
    # The pixels get no gradient.
    first = next(iter(layers.values()))
    assert step_cost(FineTuning(cnn), 2, fake=False).flops == 3 * forward - first


@pytest.mark.parametrize("fake", [True, False])
def test_the_activations_are_those_of_a_real_step(tiny_clip, digit_batch, fake):
    images, labels = digit_batch
    method = FineTuning(tiny_clip)
    assert step_cost(method, 8, fake=fake).saved_bytes == pytest.approx(
        saved_in_forward(method, images, labels), rel=0.02
    )


@pytest.mark.slow
def test_fake_and_real_steps_cost_the_same(masked):
    fake, real = (step_cost(masked, 32, "bf16-mixed", fake=way) for way in (True, False))
    assert fake.flops == real.flops
    assert fake.saved_bytes == pytest.approx(real.saved_bytes, rel=0.02)


def test_a_cnn_with_grad_cam_is_counted(small_cnn):
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    method = MaskedDistillation(small_cnn, make, GradCAM())
    plain = step_cost(FineTuning(small_cnn), 4)
    masked = step_cost(method, 4)
    assert 2 * plain.flops < masked.flops < 3 * plain.flops
    assert plain.saved_bytes < masked.saved_bytes


@pytest.mark.slow
def test_a_step_whose_shapes_depend_on_values_is_counted_too(tiny_clip, masked):
    filled = step_cost(masked, 64)
    excluding = MaskedDistillation(tiny_clip, Counterfactual(ContextMask(0.5), NoFill()))
    cost = step_cost(excluding, 64, fake=True)
    assert cost.flops == pytest.approx(filled.flops, rel=0.05)
    assert cost.saved_bytes == pytest.approx(filled.saved_bytes, rel=0.2)
    # Dropped tokens count too: one more pass of the student, forward and back, and the teacher's.
    dropping = MaskedDistillation(tiny_clip, Counterfactual(RandomMask(0.75, exact=True), NoFill()))
    plain = step_cost(FineTuning(tiny_clip), 64).flops
    assert step_cost(dropping, 64).flops == pytest.approx(plain * (2 + 1 / 3), rel=0.05)


def test_reduced_precision_and_fused_attention_keep_less(tiny_clip):
    plain = FineTuning(tiny_clip)
    full = step_cost(plain, 16).saved_bytes
    mixed = step_cost(plain, 16, "bf16-mixed").saved_bytes
    fused = step_cost(plain, 16, "bf16-mixed", fused=True).saved_bytes
    assert fused < mixed < 0.8 * full


def test_counting_leaves_no_trace(masked, digit_batch):
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    torch.manual_seed(3)
    step_cost(masked, 4)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    assert all(parameter.grad is None for parameter in masked.parameters())
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    assert "log" not in vars(masked)


def test_saved_bytes_follow_the_life_of_a_graph():
    weight, x = torch.rand(5, 5, requires_grad=True), torch.rand(3, 5)
    with SavedBytes([weight]) as saved:
        hidden = (x @ weight).sin()
        assert saved.live == 4 * (15 + 15)
        loss = (hidden * hidden).sum()
        assert saved.live == 4 * (15 + 15 + 15)
        loss.backward()
        assert saved.live == 0
        (x @ weight).sum().backward()
    assert saved.peak == 4 * 45


def test_memory_is_the_sum_of_its_parts(masked):
    parts = exact_memory(masked, 4, StepCost(flops=1.0, saved_bytes=7))
    student = sum(p.numel() for p in masked.classifier.parameters())
    # The teacher counts as weights only; the buffers are two triples for each normalisation.
    assert parts["weights"] == pytest.approx(8 * student, rel=1e-3)
    assert parts["gradients"] == 4 * student
    assert parts["AdamW"] == 8 * student
    assert parts["activations"] == 7
    assert parts["images"] == 4 * 4 * 3 * 48 * 48


@pytest.mark.slow
def test_a_step_costs_no_more_than_the_algorithm_needs():
    pair = methods("ViT-B-32-quickgelu")
    costs = {name: step_cost(method, 4) for name, method in pair.items()}
    # Torch's counter leaves out the CPU's fused attention; the summary counts it.
    counted = {}
    for name, method in pair.items():
        with FlopCounterMode(display=False) as counter:
            step(method, 2)
        counted[name] = counter.get_total_flops() / 2
        assert counted[name] < costs[name].flops < 1.02 * counted[name]
    assert counted["plain"] <= 24.3e9
    assert counted["masked"] <= 64.8e9
    assert counted["of loss"] <= 57e9
    # Maps of the relevance are not kept.
    assert costs["masked"].saved_bytes <= 1.01 * costs["plain"].saved_bytes
