from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from support.slow_clip import slow_clip, slow_relevance

from cfmask import (
    AttentionRelevance,
    GradCAM,
    InputError,
    ObjectMask,
    TimmClassifier,
    digits,
)
from cfmask.attention import AttentionOutputs


def test_attention_relevance_equals_explicit_matrices_in_float64(tiny_clip, digit_batch):
    images, labels = digit_batch
    expected_logits, maps = slow_clip(copy.deepcopy(tiny_clip).double(), images.double())
    expected = slow_relevance(expected_logits, labels, maps)
    logits, relevance = AttentionRelevance().explain(tiny_clip.double(), images.double(), labels)
    assert (logits - expected_logits).abs().max() < 1e-6
    assert relevance.shape == (8, 6, 6)
    assert (relevance.flatten(1) - expected).abs().max() < 1e-6
    assert expected.std() > 0.05


def test_attention_relevance_in_single_precision_is_close(tiny_clip, digit_batch):
    images, labels = digit_batch
    exact = AttentionRelevance().explain(copy.deepcopy(tiny_clip).double(), images.double(), labels)
    single = AttentionRelevance().explain(tiny_clip, images, labels)
    assert (single[1] - exact[1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit4"])
def test_attention_maps_of_timm_models_leave_the_output_as_it_is(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    images = torch.rand(2, 3, *model.default_cfg["input_size"][1:])
    with AttentionOutputs() as attention:
        output = model(images)
    assert torch.allclose(output, model(images), atol=1e-5)
    assert len(attention.seen) == len(model.blocks)
    for attended in attention.seen:
        weights = attended.map()
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(weights @ attended.value, attended.output, atol=1e-5)


def test_attention_maps_handle_masks_scales_and_grouped_heads():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    bias, hide = torch.randn(5, 7), torch.rand(5, 7) < 0.7
    hide[:, 0] = True
    for options in (
        {"attn_mask": bias},
        {"attn_mask": hide},
        {"scale": 0.3},
        {"is_causal": True},
    ):
        expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
        with AttentionOutputs() as attention:
            got = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
        assert torch.allclose(got, expected, atol=1e-6), options
        (attended,) = attention.seen
        assert torch.allclose(attended.map() @ attended.value, expected, atol=1e-6), options


def test_the_gradient_of_a_map_is_that_of_the_explicit_map():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8).double() for n in (4, 6, 6))
    for dropout in (0.0, 0.4):
        with AttentionOutputs() as attention:
            output = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        (attended,) = attention.seen
        explicit = attended.map().requires_grad_()
        kept = 1 if attended.kept is None else attended.kept
        assert torch.allclose((explicit * kept) @ v, output)
        weights = torch.randn_like(output)
        (want,) = torch.autograd.grad(((explicit * kept) @ v * weights).sum(), explicit)
        (of_output,) = torch.autograd.grad((output * weights).sum(), output)
        assert torch.allclose(attended.gradient(of_output), want)


def test_explaining_changes_nothing_in_the_model(tiny_clip, small_cnn, digit_batch):
    images, labels = digit_batch
    large = F.interpolate(images, (96, 96))
    for classifier, relevance, batch, classes in (
        (tiny_clip, AttentionRelevance(), images, labels),
        (tiny_clip, GradCAM(), images, labels),
        (small_cnn, GradCAM(), large, labels % 3),
    ):
        classifier.head.train()
        before = {k: v.clone() for k, v in classifier.state_dict().items()}
        modes = [m.training for m in classifier.modules()]
        relevance.explain(classifier, batch, classes)
        assert all(p.grad is None for p in classifier.parameters())
        assert all(
            not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks
            for m in classifier.modules()
        )
        assert modes == [m.training for m in classifier.modules()]
        assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def test_logits_carry_the_graph_of_a_plain_forward(tiny_clip, digit_batch):
    images, labels = digit_batch
    logits, relevance = AttentionRelevance().explain(tiny_clip, images, labels)
    assert torch.allclose(logits, tiny_clip(images), atol=1e-4)
    assert not relevance.requires_grad
    F.cross_entropy(logits, labels).backward()
    ours = {k: p.grad.clone() for k, p in tiny_clip.named_parameters()}
    tiny_clip.zero_grad()
    F.cross_entropy(tiny_clip(images), labels).backward()
    for name, parameter in tiny_clip.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-4), name


def test_relevance_needs_no_trainable_parameter(tiny_clip, digit_batch):
    images, labels = digit_batch
    expected = AttentionRelevance().explain(tiny_clip, images, labels)[1]
    cam = GradCAM().explain(tiny_clip, images, labels)[1]
    tiny_clip.requires_grad_(False)
    with torch.no_grad():
        assert torch.allclose(AttentionRelevance().explain(tiny_clip, images, labels)[1], expected)
        assert torch.allclose(GradCAM().explain(tiny_clip, images, labels)[1], cam, atol=1e-5)


def test_grad_cam_of_a_cnn_equals_the_formula(small_cnn):
    torch.manual_seed(1)
    small_cnn.double()
    images, labels = torch.rand(3, 3, 96, 96).double(), torch.tensor([0, 2, 1])
    net = small_cnn.encoder
    maps = net.forward_features((images - small_cnn.mean) / small_cnn.std)
    maps = maps.detach().requires_grad_()
    logits = maps.mean((2, 3)) @ small_cnn.head.weight.T + small_cnn.head.bias
    for n in range(3):
        (gradient,) = torch.autograd.grad(logits[n, labels[n]], maps, retain_graph=True)
        cam = torch.zeros(maps.shape[2:]).double()
        for c in range(maps.shape[1]):
            cam = cam + gradient[n, c].mean() * maps[n, c]
        cam = cam.clamp(min=0)
        got = GradCAM().explain(small_cnn, images, labels)[1][n]
        assert torch.allclose(got, cam / (cam.max() + 1e-8), atol=1e-6)


def test_grad_cam_of_a_transformer_reads_the_input_of_the_last_attention(tiny_clip, digit_batch):
    images, labels = digit_batch
    tiny_clip.double()
    seen = []
    last = tiny_clip.encoder.transformer.resblocks[-1]
    handle = last.ln_1.register_forward_hook(lambda m, i, o: seen.append(o))
    logits = tiny_clip(images.double())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), seen)
    weights = gradient[:, 1:].mean(1)
    cam = torch.einsum("npd,nd->np", seen[0][:, 1:], weights).clamp(min=0)
    expected = cam / (cam.amax(1, keepdim=True) + 1e-8)
    got = GradCAM().explain(tiny_clip, images.double(), labels)[1]
    assert torch.allclose(got.flatten(1), expected, atol=1e-6)


def test_a_finer_layer_gives_a_finer_grid(small_cnn):
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([0, 1])
    coarse = GradCAM().explain(small_cnn, images, labels)[1]
    fine = GradCAM("layer2").explain(small_cnn, images, labels)[1]
    assert coarse.shape == (2, *small_cnn.grid)
    assert fine.shape[1] > coarse.shape[1]


def test_a_layer_that_holds_the_class_token_alone_is_refused(tiny_clip, digit_batch):
    # The last block is computed for the class token alone, so what follows it has no patches.
    for layer in ("ln_post", "transformer.resblocks.3.ln_2"):
        with pytest.raises(InputError, match="spatial output"):
            GradCAM(layer).explain(tiny_clip, *digit_batch)


def test_what_cannot_be_explained_is_said_in_one_line(small_cnn):
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([0, 1])
    with pytest.raises(InputError, match="use GradCAM"):
        AttentionRelevance().explain(small_cnn, images, labels)
    with pytest.raises(InputError, match="Nearest: layer4"):
        GradCAM("layr4").explain(small_cnn, images, labels)
    with pytest.raises(InputError, match="spatial output"):
        GradCAM("global_pool").explain(small_cnn, images, labels)


def test_average_pooled_transformers_read_all_patches():
    torch.manual_seed(0)
    classifier = TimmClassifier("test_vit2", False, ["a", "b"])
    assert classifier.tokens is not None
    share = classifier.tokens.readout(torch.device("cpu"))
    assert share.sum().item() == pytest.approx(1)
    size = classifier.image_size
    _, relevance = AttentionRelevance().explain(
        classifier, torch.rand(2, 3, *size), torch.tensor([0, 1])
    )
    assert relevance.shape == (2, *classifier.grid)


def test_relevance_lies_on_the_digit_more_than_chance_and_centre_do(tiny_clip):
    drawn = digits.digit_set("id", 200, seed=0)
    images, labels = drawn.images.float() / 255, drawn.labels
    _, relevance = AttentionRelevance().explain(tiny_clip, images, labels)
    digit = F.avg_pool2d(drawn.digit.float().unsqueeze(1), 8)[:, 0] > 0.1
    mask = ObjectMask(0.3)(relevance)
    torch.manual_seed(0)
    same_size = torch.rand_like(relevance) < mask.float().mean((1, 2), keepdim=True)
    centre = torch.zeros(6, 6, dtype=torch.bool)
    centre[2:4, 2:4] = True

    def overlap(guess):
        shared, either = (guess & digit).sum((1, 2)), (guess | digit).sum((1, 2))
        return (shared / either).mean()

    assert overlap(mask) > 2 * overlap(same_size)
    assert overlap(mask) > overlap(centre.expand_as(digit))


def test_hierarchical_transformers_are_read_with_channels_last():
    torch.manual_seed(0)
    classifier = TimmClassifier("swin_tiny_patch4_window7_224", False, ["a", "b"])
    images, labels = torch.rand(1, 3, 224, 224), torch.tensor([1])
    net = classifier.encoder
    maps = net.layers[-1](net.layers[2](net.layers[1](net.layers[0](net.patch_embed(images)))))
    maps = maps.detach().requires_grad_()
    logit = classifier.head(net.forward_head(net.norm(maps), pre_logits=True))[0, 1]
    (gradient,) = torch.autograd.grad(logit, maps)
    cam = (maps * gradient.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0)
    classifier.mean.zero_()
    classifier.std.fill_(1)
    got = GradCAM().explain(classifier.eval(), images, labels)[1]
    assert got.shape == (1, *classifier.grid) == (1, 7, 7)
    assert torch.allclose(got, cam / (cam.max() + 1e-8), atol=1e-5)
    with pytest.raises(InputError, match="use GradCAM"):
        AttentionRelevance().explain(classifier, images, labels)
