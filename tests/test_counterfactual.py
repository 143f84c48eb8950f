from __future__ import annotations

import pytest
import torch

from cfmask import (
    BlurFill,
    ConstantFill,
    ContextMask,
    Counterfactual,
    InputError,
    MultiFill,
    ObjectMask,
    RandomMask,
    ShuffleFill,
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


@pytest.mark.parametrize("mask", [RandomMask, ContextMask])
def test_masks_that_hide_every_patch_are_refused(mask):
    with pytest.raises(InputError, match="hides every patch"):
        mask(1.0)
    with pytest.raises(InputError, match="hides every one"):
        RandomMask(0.9, exact=True)(torch.zeros(2, 3, 3))


@pytest.mark.parametrize("fill", [ConstantFill(), BlurFill(), ShuffleFill()])
def test_fills_without_donors_leave_the_rest_and_need_one_image_alone(fill):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 12, 20)
    filled, replaced = Counterfactual(ObjectMask(0.4), fill)(images, torch.rand(1, 3, 5))
    where = pixels(replaced, images).expand_as(images)
    assert torch.equal(filled[~where], images[~where])
    assert (filled[where] != images[where]).float().mean() > 0.5
    assert not fill.needs_donors


def test_a_constant_fill_is_its_colour():
    for colour, want in (("black", (0, 0, 0)), ("grey", (0.5,) * 3), ((0.1, 0.2, 0.3),) * 2):
        filled, _ = Counterfactual(Everything(), ConstantFill(colour))(
            torch.rand(2, 3, 4, 6), torch.rand(2, 2, 3)
        )
        assert torch.allclose(filled, torch.tensor(want).float().view(1, 3, 1, 1).expand_as(filled))
    for wrong in ((0.1, 0.2, 2.0), (0.1, 0.2)):
        with pytest.raises(InputError, match="three values"):
            ConstantFill(wrong)


def test_a_blur_is_scipys():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 3, 40, 60)
    filled, _ = Counterfactual(Everything(), BlurFill(0.05))(image, torch.rand(1, 4, 6))
    want = gaussian_filter(image[0].numpy(), (0, 2, 2), mode="mirror", radius=(0, 6, 6))
    assert torch.allclose(filled[0], torch.from_numpy(want), atol=1e-4)
    with pytest.raises(InputError, match="above 0"):
        BlurFill(0.0)


def test_shuffled_patches_change_places_among_themselves():
    torch.manual_seed(0)
    images = named_patches(6, 4, 5, 2)
    moved = 0
    for _ in range(20):
        filled, replaced = Counterfactual(ObjectMask(0.5), ShuffleFill())(
            images, torch.rand(6, 4, 5)
        )
        for n in range(6):
            before = [tuple(images[n, :, 2 * r, 2 * c].tolist()) for r, c in replaced[n].nonzero()]
            after = [tuple(filled[n, :, 2 * r, 2 * c].tolist()) for r, c in replaced[n].nonzero()]
            assert sorted(before) == sorted(after)
            moved += before != after
            kept = ~pixels(replaced, images)[n].expand(3, -1, -1)
            assert torch.equal(filled[n][kept], images[n][kept])
    assert moved > 110


def _share(rank, port, path):
    """One of two processes: its images tell its number; write which donors they got."""
    import torch.distributed as dist

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    images = torch.full((2, 3, 4, 4), 2.0 * rank) + torch.arange(2).view(2, 1, 1, 1)
    seen = []
    for fill in (SingleFill("all"), MultiFill("all")):
        for _ in range(40):
            filled, _ = Counterfactual(Everything(), fill)(images, torch.rand(2, 2, 2))
            assert (filled != images).all()
            seen.append(filled.flatten(1)[:, :1])
    torch.save(torch.cat(seen, 1), path / f"{rank}.pt")
    dist.destroy_process_group()


def test_donors_come_from_all_devices_if_asked(tmp_path):
    import os

    import torch.multiprocessing

    torch.multiprocessing.start_processes(
        _share, (20000 + os.getpid() % 20000, tmp_path), nprocs=2, start_method="fork"
    )
    for rank in range(2):
        for own, donors in enumerate(torch.load(tmp_path / f"{rank}.pt", weights_only=True)):
            assert set(donors.tolist()) == {0.0, 1.0, 2.0, 3.0} - {2.0 * rank + own}
