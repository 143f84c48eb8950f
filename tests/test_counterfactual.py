from __future__ import annotations

import pytest
import torch

from cfmask import (
    ContextMask,
    Counterfactual,
    InputError,
    MultiFill,
    ObjectMask,
    RandomMask,
    SingleFill,
)
from cfmask.counterfactual import PatchMask, pixels


class Everything(PatchMask):
    def __call__(self, relevance):
        return torch.ones_like(relevance, dtype=torch.bool)


def named_patches(batch, h, w, patch):
    """Images whose pixels all tell from which image and grid position they come."""
    image = torch.arange(batch).view(-1, 1, 1, 1)
    row = torch.arange(h).repeat_interleave(patch).view(1, 1, -1, 1)
    column = torch.arange(w).repeat_interleave(patch).view(1, 1, 1, -1)
    size = (batch, 1, h * patch, w * patch)
    return torch.cat([x.expand(size) for x in (image, row, column)], 1).float()


def test_object_and_context_masks_part_the_image_at_the_threshold():
    relevance = torch.tensor([[[0.0, 0.29, 0.3], [0.31, 0.9, 1.0]]])
    expected = torch.tensor([[[False, False, False], [True, True, True]]])
    assert torch.equal(ObjectMask(0.3)(relevance), expected)
    assert torch.equal(ContextMask(0.3)(relevance), ~expected)


def test_random_mask_replaces_with_its_probability():
    torch.manual_seed(0)
    zeros = torch.zeros(100, 14, 14)
    share = RandomMask(0.25)(zeros).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / zeros.numel()) ** 0.5
    assert not RandomMask(0.0)(zeros).any()
    assert RandomMask(1.0)(zeros).all()


@pytest.mark.parametrize("fill", [SingleFill(), MultiFill()])
@pytest.mark.parametrize("batch", [2, 3, 17])
def test_fills_take_from_other_images_at_the_same_position(fill, batch):
    torch.manual_seed(0)
    images = named_patches(batch, 3, 5, 4)
    for _ in range(30):
        relevance = torch.rand(batch, 3, 5)
        filled, replaced = Counterfactual(ObjectMask(0.4), fill)(images, relevance)
        where = pixels(replaced, images).expand_as(images)
        assert torch.equal(filled[~where], images[~where])
        assert torch.equal(filled[:, 1:], images[:, 1:])
        donors, own = filled[:, :1], images[:, :1]
        assert (donors[where[:, :1]] != own[where[:, :1]]).all()


def test_single_fill_has_one_donor_an_image_and_every_image_gives_once():
    torch.manual_seed(0)
    images = named_patches(9, 2, 2, 2)
    for _ in range(30):
        filled, _ = Counterfactual(Everything(), SingleFill())(images, torch.rand(9, 2, 2))
        donors = filled[:, 0].flatten(1)
        assert (donors == donors[:, :1]).all()
        assert sorted(donors[:, 0].tolist()) == list(range(9))


def test_single_fill_chooses_every_other_image_equally_often():
    torch.manual_seed(0)
    images = named_patches(4, 1, 1, 1)
    counts = torch.zeros(4, 4)
    for _ in range(3000):
        filled, _ = Counterfactual(Everything(), SingleFill())(images, torch.rand(4, 1, 1))
        counts[torch.arange(4), filled[:, 0, 0, 0].long()] += 1
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(4, dtype=torch.bool)]
    assert (others - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5


def test_multi_fill_draws_a_donor_for_every_patch():
    torch.manual_seed(0)
    images = named_patches(16, 6, 6, 2)
    filled, _ = Counterfactual(Everything(), MultiFill())(images, torch.rand(16, 6, 6))
    donors = filled[:, 0, ::2, ::2]
    assert all(len(image.unique()) > 5 for image in donors)
    for row in range(12):
        for column in range(12):
            same_patch = filled[:, 0, row // 2 * 2, column // 2 * 2]
            assert torch.equal(filled[:, 0, row, column], same_patch)


def test_pixels_belong_to_the_patch_that_covers_them():
    patches = torch.rand(2, 3, 2) < 0.5
    spread = pixels(patches, torch.zeros(2, 3, 12, 10))
    for n in range(2):
        for y in range(12):
            for x in range(10):
                assert spread[n, 0, y, x] == patches[n, y // 4, x // 5]


def test_the_same_seed_gives_the_same_counterfactuals():
    images, relevance = torch.rand(6, 3, 8, 8), torch.rand(6, 4, 4)
    for mask, fill in ((RandomMask(0.5), MultiFill()), (ObjectMask(), SingleFill())):
        make = Counterfactual(mask, fill)
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(make(images, relevance)[0])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("mask", [RandomMask, ObjectMask, ContextMask])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_thresholds_outside_0_and_1_are_refused(mask, value):
    with pytest.raises(InputError, match=r"in \[0, 1\], but got"):
        mask(value)


@pytest.mark.parametrize("fill", [SingleFill(), MultiFill()])
def test_one_image_has_no_donor(fill):
    with pytest.raises(InputError, match="at least 2 images"):
        Counterfactual(ObjectMask(), fill)(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 2))


def test_a_grid_that_does_not_divide_the_image_is_refused():
    for fill in (SingleFill(), MultiFill()):
        with pytest.raises(InputError, match="divides images of 10 x 8"):
            Counterfactual(ObjectMask(), fill)(torch.rand(2, 3, 10, 8), torch.rand(2, 4, 4))
