"""Crop selection, against loops over places and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.evaluation import Sees
from torch import nn

import cfmask
from cfmask import InputError, Preprocess
from cfmask.comparison.compare import check_run
from cfmask.comparison.further_rows import with_crop_selection
from cfmask.comparison.sources import Found
from cfmask.families.cropped import CropSelection, chosen_crops
from cfmask.shifts.own_sets import dataset_shift
from cfmask.views.known_views import views_of

SIDE = 16


def classifier(crop_pct: float = 0.5) -> Sees:
    torch.manual_seed(0)
    net = Sees(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 5)), SIDE)
    net.spec = cfmask.spec.Spec("seen", tuple("abcde"), Preprocess((SIDE, SIDE), crop_pct))
    net.preprocess = net.spec.preprocess
    return net.eval()


def standing_out(image: np.ndarray, y: int, x: int) -> float:
    """Of a pixel of float (H, W, 3): its smoothed grey against that of its four neighbours."""

    def smooth(y: int, x: int) -> float:
        return sum(image[y + i, x + j].mean() for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9

    around = smooth(y - 1, x) + smooth(y + 1, x) + smooth(y, x - 1) + smooth(y, x + 1)
    return abs(around - 4 * smooth(y, x))


@pytest.mark.parametrize(("height", "width", "reach"), [(8, 8, 1), (9, 6, 3)])
def test_the_crop_is_the_one_whose_centre_stands_out_most(height, width, reach):
    rng = np.random.default_rng(0)
    images = rng.random((4, height + 2 * reach, width + 2 * reach, 3))
    found = chosen_crops(torch.tensor(images).permute(0, 3, 1, 2), reach)
    for image, crop in zip(images, found):
        places = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
        y, x = max(places, key=lambda p: standing_out(image, p[0] + height // 2, p[1] + width // 2))
        expected = image[y : y + height, x : x + width]
        np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), expected)


def test_what_moves_with_the_picture_is_seen_as_it_was_unless_its_best_place_leaves():
    scene = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    # The middle of what is read stands out, so that every shift by less than the reach keeps it.
    scene[..., 20, 20] += 20
    seen = {
        (dy, dx): chosen_crops(scene[..., 7 + dy : 33 + dy, 7 + dx : 33 + dx], 5)
        for dy in range(-5, 6)
        for dx in range(-5, 6)
    }
    inside = [crop for (dy, dx), crop in seen.items() if max(abs(dy), abs(dx)) < 5]
    assert len(inside) == 81
    assert all(torch.equal(crop, inside[0]) for crop in inside)
    plain = {float(scene[..., 12 + d : 28 + d, 12:28].sum()) for d in range(-5, 6)}
    assert len(plain) == 11, "the crop in the middle changes with every pixel"


def test_a_row_is_the_classifier_on_the_chosen_crops_and_steadier():
    rng = np.random.default_rng(1)
    pictures = [
        (torch.tensor(rng.integers(0, 256, (3, 32, 32)), dtype=torch.uint8), k % 5)
        for k in range(40)
    ]
    as_images = [(np.asarray(p.permute(1, 2, 0)), label) for p, label in pictures]
    net = classifier()
    shift = dataset_shift("scenes", as_images, list("abcde"))
    rows = with_crop_selection(Found({"net": net}, {}, {}), 6)
    first, row = rows.models
    assert rows.starts == {row: first}
    report = cfmask.evaluate(rows.models, [shift], views=views_of(["translation"]))
    right = 0
    with torch.no_grad():
        for picture, label in pictures:
            # The picture has the size to which the preprocessing resizes.
            around = picture[None, :, 2:30, 2:30].float() / 255
            right += int(net(chosen_crops(around, 6)).argmax()) == label
    assert report.value(row, "scenes") == right / 40
    before, after = (
        next(r.value for r in report.rows if (r.model, r.metric) == (name, "translation/agreement"))
        for name in (first, row)
    )
    assert after > before


def test_a_reach_that_the_picture_does_not_leave_is_refused_before_work():
    net = classifier(0.8)
    for reach, told in ((0, "at least 1"), (3, "Expected at most 2 pixels")):
        with pytest.raises(InputError, match=told):
            check_run(net, ["digits/id"], None, crop_selection=reach)
    with pytest.raises(InputError, match="without crop selection"):
        CropSelection(CropSelection(net, 1), 1)
