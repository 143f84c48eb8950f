from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import chi2_contingency
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from cfmask import DigitsData, InputError, digits
from cfmask.images import Preprocess
from cfmask.shift import Request
from cfmask.shifts.digits_world import digits_shifts

INDEPENDENT = ["v2", "sketch", "rendition", "corruption"]


@cache
def drawn(name: str) -> digits.DigitSet:
    """A thousand images of a set; tests must not change them."""
    return digits.digit_set(name, 1000, seed=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", digits.SETS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name):
    first = digits.digit_set(name, 30, 0)
    digits.digit_set("val", 3, 0)
    torch.manual_seed(99)
    again, other = digits.digit_set(name, 30, 0), digits.digit_set(name, 30, 1)
    for field in ("images", "labels", "digit", "backgrounds", "styles"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.labels, other.labels)


def test_sets_of_one_law_do_not_repeat_each_other():
    train, val = digits.digit_set("train", 30, 0), digits.digit_set("val", 30, 0)
    assert not torch.equal(train.backgrounds, val.backgrounds)


@pytest.mark.parametrize("name", digits.SETS)
def test_a_set_has_the_shapes_it_says(name):
    data = digits.digit_set(name, 13, 0)
    assert data.images.shape == (13, 3, 48, 48)
    assert data.images.dtype == torch.uint8
    assert data.digit.shape == (13, 48, 48)
    assert data.digit.dtype == torch.bool
    assert len(data) == len(data.labels) == len(data.backgrounds) == len(data.styles) == 13


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="sketches"):
        digits.digit_set("sketches", 3, 0)


@pytest.mark.parametrize("count", [1, 10, 47, 100])
def test_classes_are_balanced_up_to_rounding(count):
    sizes = digits.digit_set("id", count, 0).labels.bincount(minlength=10)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() == (count % 10 > 0)


def test_labels_come_in_no_order():
    assert abs(np.corrcoef(np.arange(1000) % 10, drawn("id").labels)[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["train", "id"])
def test_the_background_gives_the_class_away_in_95_percent(name):
    share = (drawn(name).labels == drawn(name).backgrounds).double().mean()
    # Four standard deviations of a thousand draws.
    assert abs(share - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_the_background_of_the_counter_set_is_never_that_of_the_class():
    assert not (drawn("counter").labels == drawn("counter").backgrounds).any()
    assert drawn("counter").backgrounds.bincount(minlength=10).min() > 0


def chance(name: str) -> float:
    """p-value of independence of class and background."""
    table = np.zeros((10, 10))
    np.add.at(table, (drawn(name).labels.numpy(), drawn(name).backgrounds.numpy()), 1)
    return chi2_contingency(table).pvalue


@pytest.mark.parametrize("name", INDEPENDENT)
def test_the_background_tells_nothing_of_the_class(name):
    assert chance(name) > 0.001


def test_the_chance_of_independence_tells_the_tied_sets():
    assert chance("id") < 1e-100
    assert chance("counter") < 1e-6


@pytest.mark.parametrize("name", digits.SETS)
def test_only_the_ten_backgrounds_of_the_classes_are_used(name):
    assert digits.digit_set(name, 300, 0).backgrounds.unique().tolist() == list(range(10))


def test_the_scans_of_the_pools_are_disjoint():
    bounds = sorted(digits.POOLS.values())
    assert all(first < last for first, last in bounds)
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
    everything, _ = load_digits(return_X_y=True)
    assert (bounds[0][0], bounds[-1][1]) == (0, len(everything))
    pooled = torch.cat([digits._scans(name)[0] for name in digits.POOLS]).flatten(1) * 16
    assert sorted(pooled.tolist()) == sorted(everything.tolist())


@pytest.mark.parametrize("pool", digits.POOLS)
def test_the_scan_of_a_label_shows_that_digit(pool):
    known = KNeighborsClassifier(1).fit(*load_digits(return_X_y=True))
    labels = torch.arange(10).repeat(20)
    scans = digits._draw_digits(labels, pool, seeded())
    assert known.predict(scans.flatten(1).numpy() * 16).tolist() == labels.tolist()
    assert len(scans.flatten(1).unique(dim=0)) > 50


@pytest.mark.parametrize("name", digits.SETS)
def test_every_image_has_a_digit_fully_inside_and_off_centre(name):
    masks = drawn(name).digit.numpy()
    assert masks.sum((1, 2)).min() >= 40
    outermost = masks.copy()
    outermost[:, 1:-1, 1:-1] = False
    assert outermost.any((1, 2)).mean() < 0.01
    centres = np.array([ndimage.center_of_mass(mask) for mask in masks])
    assert (centres.std(0) >= 4).all()
    assert np.abs(centres.mean(0) - 23.5).max() < 1


def even_ground(monkeypatch, grey: float) -> None:
    photo = torch.full((1, 3, 160, 240), grey)
    monkeypatch.setattr(digits, "_photograph", lambda name: photo)


@pytest.mark.parametrize("grey", [0.2, 0.9])
def test_the_mask_covers_the_pixels_of_the_digit(monkeypatch, grey):
    even_ground(monkeypatch, grey)
    data = digits.digit_set("id", 60, 0)
    change = data.images.float().mean(1) / 255 - grey
    # The digit is lighter than dark ground and darker than light ground.
    assert ((change if grey < 0.5 else -change)[data.digit] > 0.05).all()
    around = ndimage.binary_dilation(data.digit, np.ones((1, 7, 7)))
    assert change[~torch.from_numpy(around)].abs().max() < 1 / 255


def test_training_and_test_crops_are_of_disjoint_parts_of_a_photograph(monkeypatch):
    photo = torch.zeros(1, 3, 160, 200)
    photo[..., 130:] = 1
    monkeypatch.setattr(digits, "_photograph", lambda name: photo)
    backgrounds = torch.arange(10).repeat(40)
    assert digits._crop(backgrounds, digits.BACKGROUNDS, "train", seeded()).max() == 0
    assert digits._crop(backgrounds, digits.BACKGROUNDS, "test", seeded()).min() > 1 - 1e-5


@pytest.mark.parametrize(("side", "bounds"), [("train", (0, 156)), ("test", (156, 240))])
def test_crops_are_squares_from_all_over_their_part(monkeypatch, side, bounds):
    rows, columns = torch.meshgrid(torch.arange(160.0), torch.arange(240.0), indexing="ij")
    monkeypatch.setattr(
        digits, "_photograph", lambda name: torch.stack([rows, columns, columns]).unsqueeze(0)
    )
    crops = digits._crop(torch.zeros(400, dtype=torch.int64), digits.BACKGROUNDS, side, seeded())
    columns, rows = crops[:, 1], crops[:, 0]
    assert bounds[0] <= columns.min() < bounds[0] + 3
    assert bounds[1] - 4 < columns.max() <= bounds[1] - 1
    assert rows.min() < 3
    assert rows.max() > 156
    wide, high = (x.flatten(1).amax(1) - x.flatten(1).amin(1) for x in (columns, rows))
    # Pixel centres of a crop of 40 to 56 px span 47/48 of its side.
    for span in (wide, high):
        assert span.min() > 40 * 47 / 48 - 1
        assert span.max() < 56 * 47 / 48 + 1
    assert (wide - high).abs().max() < 1.5


@pytest.mark.parametrize("name", digits.BACKGROUNDS)
def test_every_photograph_is_there_and_wide_enough_for_test_crops(name):
    photo = digits._photograph(name)
    assert photo.shape[:3] == (1, 3, 160)
    assert photo.amin() >= 0
    assert photo.amax() < 1 + 1e-5
    assert photo.std() > 0.01
    assert photo.shape[-1] - round(0.65 * photo.shape[-1]) >= 56


IMAGES = torch.rand(4, 3, 48, 48, generator=seeded(7))


def styled(style: str, seed: int = 0) -> np.ndarray:
    return digits.STYLES[style](IMAGES.clone(), seeded(seed)).numpy()


def luminance(images: np.ndarray) -> np.ndarray:
    return images[:, :1] * 0.299 + images[:, 1:2] * 0.587 + images[:, 2:] * 0.114


def test_the_photo_style_changes_nothing():
    assert np.array_equal(styled("photo"), IMAGES.numpy())


def test_a_negative_is_one_minus_the_image():
    assert np.array_equal(styled("negative"), 1 - IMAGES.numpy())


def test_a_gray_image_is_the_luminance():
    expected = np.repeat(luminance(IMAGES.numpy()), 3, 1)
    np.testing.assert_allclose(styled("gray"), expected, atol=1e-6)


def test_a_sketch_is_white_but_for_the_sobel_edges():
    # Faint enough that most edges are not cut off at black.
    images = IMAGES / 8
    sketch = digits.STYLES["sketch"](images, seeded())
    for image, grey in zip(sketch, luminance(images.numpy())[:, 0]):
        edges = np.hypot(*(ndimage.sobel(grey, axis, mode="nearest") for axis in (0, 1)))
        expected = np.broadcast_to(np.clip(1 - edges, 0, 1), (3, 48, 48))
        np.testing.assert_allclose(image, expected, atol=1e-5)


def test_a_painting_is_a_median_with_strong_colours_in_six_levels():
    median = ndimage.median_filter(IMAGES.numpy(), (1, 1, 3, 3), mode="nearest")
    grey = luminance(median)
    strong = np.clip(grey + 1.6 * (median - grey), 0, 1)
    got = styled("painting")
    assert set(np.unique((got * 5).round(4))) == {0, 1, 2, 3, 4, 5}
    assert np.abs(got - strong).max() <= 0.1 + 1e-6


def test_a_mosaic_has_tiles_of_their_mean_colour():
    tiles = styled("mosaic").reshape(4, 3, 16, 3, 16, 3)
    means = IMAGES.numpy().reshape(4, 3, 16, 3, 16, 3).mean((3, 5), keepdims=True)
    np.testing.assert_allclose(tiles, np.broadcast_to(means, tiles.shape), atol=1e-6)


def test_a_blurry_image_is_that_of_a_gaussian():
    expected = ndimage.gaussian_filter(
        IMAGES.numpy(), (0, 0, 1.4, 1.4), radius=(0, 0, 3, 3), mode="mirror"
    )
    np.testing.assert_allclose(styled("blurry"), expected, atol=1e-5)


def test_noise_is_independent_of_the_image_and_seeded():
    noise = styled("noisy") - IMAGES.numpy()
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 0.1) < 0.005
    assert np.array_equal(styled("noisy"), styled("noisy"))
    assert not np.array_equal(styled("noisy"), styled("noisy", seed=1))


@pytest.mark.parametrize("name", digits.SETS)
def test_a_set_has_the_styles_of_its_law(name):
    wanted = {
        "sketch": {"sketch"},
        "rendition": {"negative", "painting", "mosaic"},
        "corruption": {"blurry", "noisy"},
    }
    order = list(digits.STYLES)
    found = {order[i] for i in drawn(name).styles.unique().tolist()}
    assert found == wanted.get(name, {"photo"})


def test_images_are_drawn_in_the_style_they_are_said_to_have():
    images = drawn("rendition").images.float()
    order = list(digits.STYLES)
    mosaic = drawn("rendition").styles == order.index("mosaic")
    tiles = images.unflatten(3, (16, 3)).unflatten(2, (16, 3))
    even = (tiles.amax((3, 5)) == tiles.amin((3, 5))).flatten(1).all(1)
    assert torch.equal(even, mosaic)
    painting = drawn("rendition").styles == order.index("painting")
    few = torch.tensor([len(image.unique()) <= 6 for image in images[:200]])
    assert torch.equal(few, painting[:200])
    sketch = drawn("sketch").images
    assert (sketch == sketch[:, :1]).all()


def test_training_data_is_the_world_at_the_size_of_the_encoder():
    data = DigitsData(train_images=12, val_images=5, seed=4)
    train, val = data.load(Preprocess((48, 48)))
    assert torch.equal(train.images, digits.digit_set("train", 12, 4).images)
    assert torch.equal(val.labels, digits.digit_set("val", 5, 4).labels)
    assert data.load(Preprocess((64, 32)))[0][0][0].shape == (3, 64, 32)


def test_enlarged_digits_stay_bytes_of_the_same_brightness():
    data = DigitsData(train_images=12)
    small, large = (data.load(Preprocess((side, side)))[0].images for side in (48, 96))
    assert large.dtype == torch.uint8
    means = [x.float().mean((1, 2, 3)) for x in (small, large)]
    torch.testing.assert_close(*means, atol=1.5, rtol=0)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0)])
def test_a_digits_world_without_images_is_refused(sizes):
    with pytest.raises(InputError, match="at least 1 image"):
        DigitsData(*sizes).load(Preprocess((48, 48)))


def test_more_images_than_memory_should_be_asked_for_are_refused():
    with pytest.raises(InputError, match=r"at most 1,000,000 images of digits, but got 2,147,483"):
        digits.digit_set("id", 2**31, 0)
    with pytest.raises(InputError, match="at most 1,000,000 images of digits"):
        digits_shifts(Request(None, digits.CLASS_NAMES, 2**31, 0))
