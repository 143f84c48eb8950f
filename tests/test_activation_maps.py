"""Class activation maps against the grad-cam package, rollout against whole matrices."""

from __future__ import annotations

import pytest
import torch

from cfmask import AttentionRollout, GradCAM, HiResCAM, InputError, LayerCAM, TimmClassifier
from cfmask.attention import AttentionOutputs
from cfmask.relevance import normalise

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")


@pytest.mark.parametrize("kind", [GradCAM, HiResCAM, LayerCAM])
@pytest.mark.parametrize("layer", [None, "layer2"])
def test_a_map_is_that_of_the_grad_cam_package(small_cnn, kind, layer):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    small_cnn.eval()
    images, labels = torch.rand(4, 3, 96, 96), torch.tensor([0, 1, 2, 1])
    got = kind(layer).explain(small_cnn, images, labels)[1]
    target = small_cnn.layer(layer or small_cnn.feature_map)
    reference = getattr(pytorch_grad_cam, kind.__name__)(small_cnn, [target])
    # The package would enlarge its maps to the image; here they keep their grid.
    reference.get_target_width_height = lambda images: (got.shape[2], got.shape[1])
    targets = [ClassifierOutputTarget(k) for k in labels.tolist()]
    want = torch.from_numpy(reference(images, targets))
    # The package moves the least value of each map to 0 and the largest to 1.
    low = got.amin((1, 2), keepdim=True)
    scaled = (got - low) / (got.amax((1, 2), keepdim=True) - low).clamp(min=1e-6)
    assert torch.allclose(scaled, want, atol=1e-4)
    assert (want.amax((1, 2)) > 0.9).any()


@pytest.mark.parametrize("kind", [GradCAM, HiResCAM, LayerCAM])
def test_a_map_is_its_formula(small_cnn, kind):
    torch.manual_seed(0)
    small_cnn.double().eval()
    images, labels = torch.rand(2, 3, 96, 96).double(), torch.tensor([2, 0])
    stem, held = small_cnn.encoder, []
    handle = small_cnn.layer(small_cnn.feature_map).register_forward_hook(
        lambda module, args, output: held.append(output)
    )
    score = small_cnn(images)[[0, 1], labels].sum()
    handle.remove()
    activation = held[0]
    (gradient,) = torch.autograd.grad(score, activation)
    weight = {
        GradCAM: gradient.mean((2, 3))[:, :, None, None],
        HiResCAM: gradient,
        LayerCAM: gradient.relu(),
    }[kind]
    want = torch.zeros(2, *activation.shape[2:], dtype=torch.float64)
    for channel in range(activation.shape[1]):
        want += (weight * activation)[:, channel]
    want = want.relu()
    got = kind().explain(small_cnn, images, labels)[1]
    assert torch.allclose(got, want / (want.amax((1, 2), keepdim=True) + 1e-8), atol=1e-6)
    assert stem is small_cnn.encoder


def test_rollout_is_the_product_of_whole_matrices(tiny_clip, digit_batch):
    images, labels = digit_batch
    got = AttentionRollout().explain(tiny_clip, images, labels)[1]
    # The tower's own forward computes the last block for all tokens.
    with torch.no_grad(), AttentionOutputs() as attention:
        tiny_clip.encoder((images - tiny_clip.mean) / tiny_clip.std)
    rolled = torch.eye(37).expand(8, 37, 37)
    for attended in attention.seen:
        rolled = (attended.map().mean(1) + torch.eye(37)) / 2 @ rolled
    want = rolled[:, 0, 1:].unflatten(1, (6, 6))
    assert torch.allclose(got, normalise(want), atol=1e-5)


def test_rollout_knows_no_class_and_needs_attention(tiny_clip, small_cnn, digit_batch):
    images, labels = digit_batch
    first, second = (
        AttentionRollout().explain(tiny_clip, images, k)[1] for k in (labels, labels - labels)
    )
    assert torch.equal(first, second)
    with pytest.raises(InputError, match="attention maps for AttentionRollout"):
        AttentionRollout().explain(small_cnn, torch.rand(2, 3, 96, 96), torch.tensor([0, 1]))


def test_a_layer_that_never_runs_is_said():
    net = TimmClassifier("test_vit", False, ["a", "b"])
    net.encoder.spare = torch.nn.Identity()
    with pytest.raises(InputError, match="spare is not called"):
        GradCAM("spare").explain(net, torch.rand(1, 3, *net.image_size), torch.tensor([0]))
