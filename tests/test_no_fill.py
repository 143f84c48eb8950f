from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.slow_clip import slow_clip

from cfmask import (
    ContextMask,
    Counterfactual,
    InputError,
    MaskedDistillation,
    NoFill,
    ObjectMask,
    RandomMask,
    TimmClassifier,
)
from cfmask.counterfactual import pixels


def noise_where(hidden, images):
    """Images with other pixels in the hidden patches."""
    return torch.where(pixels(hidden, images), torch.rand_like(images), images)


def slow_without(classifier, image, hidden):
    """Features of one image by a plain forward of the kept tokens alone, in float64."""
    tower = classifier.encoder
    tokens = tower._embeds((image - classifier.mean) / classifier.std)
    kept = [0, *(1 + (~hidden.flatten()).nonzero().flatten()).tolist()]
    tokens = tower.transformer(tokens[:, kept])
    return tower._pool(tokens)[0] @ tower.proj


@pytest.mark.parametrize("equal", [True, False])
def test_removed_patches_are_as_if_their_tokens_were_not_there(tiny_clip, digit_batch, equal):
    torch.manual_seed(0)
    tiny_clip.double()
    images = digit_batch[0].double()
    mask = RandomMask(0.6, exact=equal)
    hidden = mask(torch.zeros(8, 6, 6))
    assert (len(hidden.flatten(1).sum(1).unique()) == 1) == equal
    with torch.no_grad():
        got = tiny_clip.features(images, hidden, mask.kept(36))
        for n in range(8):
            expected = slow_without(tiny_clip, images[n : n + 1], hidden[n])
            assert torch.allclose(got[n : n + 1], expected, atol=1e-8)


def test_excluded_keys_and_dropped_tokens_give_the_same(tiny_clip, digit_batch):
    hidden = RandomMask(0.5, exact=True)(torch.zeros(8, 6, 6))
    torch.manual_seed(0)
    vit = TimmClassifier("test_vit", False, ["a", "b"], image_size=96)
    for classifier in (tiny_clip, vit):
        images = F.interpolate(digit_batch[0], classifier.image_size)
        with torch.no_grad():
            dropped = classifier.eval().features(images, hidden, 18)
            excluded = classifier.features(images, hidden)
        assert torch.allclose(dropped, excluded, atol=1e-5)


def test_hidden_pixels_have_no_influence(tiny_clip, small_cnn, digit_batch):
    torch.manual_seed(0)
    vit = TimmClassifier("test_vit", False, ["a", "b"])
    for classifier in (tiny_clip, small_cnn, vit):
        classifier.eval()
        images = torch.rand(4, 3, *classifier.image_size)
        hidden = torch.rand(4, *classifier.grid) < 0.5
        other = noise_where(hidden, images)
        with torch.no_grad():
            same = classifier.features(images, hidden)
            assert torch.allclose(same, classifier.features(other, hidden), atol=1e-6)
            assert not torch.allclose(same, classifier.features(images), atol=1e-3)
            nothing = torch.zeros_like(hidden)
            plain = classifier.features(images)
            assert torch.allclose(classifier.features(images, nothing), plain, atol=1e-4)


def test_an_image_without_patches_is_finite(tiny_clip, small_cnn):
    for classifier in (tiny_clip, small_cnn):
        images = torch.rand(2, 3, *classifier.image_size)
        everything = torch.ones(2, *classifier.grid, dtype=torch.bool)
        features = classifier.features(images, everything)
        assert torch.isfinite(features).all()
        assert torch.allclose(features[0], features[1], atol=1e-5)


def test_exact_random_masks_keep_the_promised_number():
    torch.manual_seed(0)
    for probability, kept in ((0.75, 12), (0.5, 24), (0.0, 49)):
        mask = RandomMask(probability, exact=True)(torch.zeros(20, 7, 7))
        assert ((~mask).flatten(1).sum(1) == kept).all()
    share = torch.stack([RandomMask(0.5, exact=True)(torch.zeros(1, 4, 4))[0] for _ in range(800)])
    assert (share.float().mean(0) - 0.5).abs().max() < 5 * (0.25 / 800) ** 0.5


@pytest.mark.parametrize("mask", [RandomMask(0.75, exact=True), ObjectMask(0.3), ContextMask(0.6)])
def test_masked_distillation_without_fill_teaches_the_visible_patches(tiny_clip, digit_batch, mask):
    method = MaskedDistillation(tiny_clip, Counterfactual(mask, NoFill()))
    method.log = lambda *a, **k: None
    with torch.no_grad():
        tiny_clip.encoder.proj.mul_(1.1)
    losses = method.losses(*digit_batch)
    assert losses["distill"] > 0
    losses["distill"].backward()
    assert tiny_clip.encoder.conv1.weight.grad.abs().sum() > 0


def test_masks_of_another_grid_are_refused(tiny_clip):
    with pytest.raises(InputError, match=r"grid of \(6, 6\)"):
        tiny_clip.features(torch.rand(2, 3, 48, 48), torch.zeros(2, 5, 6, dtype=torch.bool))


def test_the_slow_forward_agrees_without_a_mask(tiny_clip, digit_batch):
    classifier = copy.deepcopy(tiny_clip).double()
    images = digit_batch[0].double()
    expected, _ = slow_clip(classifier, images)
    nothing = torch.zeros(8, 6, 6, dtype=torch.bool)
    got = classifier.classify(classifier.features(images, nothing))
    assert torch.allclose(got, expected, atol=1e-6)
