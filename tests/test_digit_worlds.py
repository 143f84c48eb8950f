"""The second shortcut, the held-out world and the knobs of the training data."""

from __future__ import annotations

import colorsys
import inspect
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import chi2_contingency
from support.runs import plant_run

from cfmask import DigitsData, InputError, Preprocess, digits, find_shifts
from cfmask.commands.main import main
from cfmask.evaluation.figures import Row
from cfmask.evaluation.measures import combination_rows
from cfmask.shift import Request
from cfmask.shifts.digits_world import CONTEXTS, TRAINING

PAGE = (Path(__file__).parents[1] / "docs" / "digits.md").read_text()


@cache
def drawn(world: str, name: str) -> digits.DigitSet:
    return digits.digit_set(name, 1000, 0, world)


def independent(labels: torch.Tensor, cue: torch.Tensor) -> bool:
    table = np.zeros((10, int(cue.max()) + 1))
    np.add.at(table, (labels.numpy(), cue.numpy()), 1)
    return bool(chi2_contingency(table).pvalue > 0.001)


@pytest.mark.parametrize(
    ("name", "background", "mark"),
    [
        ("id", True, True),
        ("no-background", False, True),
        ("no-mark", True, False),
        ("neither", False, False),
    ],
)
def test_each_marked_set_unties_what_it_is_called_by(name, background, mark):
    found = drawn("digits-marked", name)
    for cue, tied in ((found.backgrounds, background), (found.marks, mark)):
        share = (cue == found.labels).double().mean()
        # Four standard deviations of 1,000 draws of 0.95.
        assert abs(share - 0.95) < 0.028 if tied else independent(found.labels, cue)


@pytest.mark.parametrize("name", digits.MARKED)
def test_a_mark_is_a_square_of_its_classs_hue_in_one_corner(name):
    found = drawn("digits-marked", name)
    corners = {(a, b) for a in (0, 40) for b in (0, 40)}
    seen = set()
    for image, k, digit in zip(found.images, found.marks.tolist(), found.digit):
        hue = torch.tensor(colorsys.hsv_to_rgb(k / 10, 1, 1))
        hit = ((image.permute(1, 2, 0) / 255 - hue).abs().amax(2) < 0.01) | digit
        here = {(a, b) for a, b in corners if hit[a : a + 8, b : b + 8].float().mean() > 0.9}
        assert here
        seen |= here
    assert seen == corners


def test_the_first_world_has_no_marks():
    assert (drawn("digits", "id").marks == -1).all()


def test_the_held_out_world_has_other_photographs_and_styles():
    assert not set(digits.OTHER_PHOTOGRAPHS) & set(digits.BACKGROUNDS)
    assert not set(digits.OTHER_STYLES) & set(digits.STYLES)
    places = drawn("digits-held-out", "places")
    assert places.backgrounds.unique().tolist() == list(range(len(digits.OTHER_PHOTOGRAPHS)))
    assert independent(places.labels, places.backgrounds)
    order = [*digits.STYLES, *digits.OTHER_STYLES]
    for name, styles in (("chalk", {"chalk"}), ("weather", {"fog", "waves"})):
        assert {order[i] for i in drawn("digits-held-out", name).styles.tolist()} == styles
        assert independent(
            drawn("digits-held-out", name).labels, drawn("digits-held-out", name).backgrounds
        )


def test_another_world_is_another_draw():
    first, second = drawn("digits", "id"), drawn("digits-held-out", "id")
    assert abs((second.backgrounds == second.labels).double().mean() - 0.95) < 0.028
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize("name", digits.OTHER_PHOTOGRAPHS)
def test_every_held_out_photograph_is_there_and_wide_enough(name):
    photo = digits._photograph(name)
    assert photo.std() > 0.01
    assert photo.shape[-1] - round(0.65 * photo.shape[-1]) >= 56


IMAGES = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(7))


def styled(style: str) -> np.ndarray:
    rng = torch.Generator().manual_seed(0)
    return digits.OTHER_STYLES[style](IMAGES.clone(), rng).double().numpy()


def test_a_duotone_is_a_line_through_the_luminance_with_its_light_end_above():
    weights = np.array([0.299, 0.587, 0.114])
    grey = np.einsum("nchw,c->nhw", IMAGES.double().numpy(), weights)
    for image, luminance in zip(styled("duotone"), grey):
        for channel in image:
            slope, dark = np.polyfit(luminance.ravel(), channel.ravel(), 1)
            np.testing.assert_allclose(channel, dark + slope * luminance, atol=1e-6)
            assert 0 <= dark <= 0.4
            assert 0.6 - 1e-6 <= dark + slope <= 1 + 1e-6


def test_fog_lies_between_the_image_and_white_and_varies_slowly():
    # Where an image is white already, its fog cannot be told.
    dark = 0.9 * IMAGES
    foggy = digits.OTHER_STYLES["fog"](dark.clone(), torch.Generator().manual_seed(0))
    thickness = ((foggy - dark) / (1 - dark)).double().numpy()
    np.testing.assert_allclose(thickness, thickness[:, :1].repeat(3, 1), atol=1e-5)
    assert thickness.min() > -1e-6
    assert thickness.max() < 0.7 + 1e-6
    # From one knot to the next, 15.7 px away, it changes by 0.7 at most.
    assert np.abs(np.diff(thickness[:, 0], axis=2)).max() < 0.7 / 15.6 + 1e-5


def test_waves_move_every_row_by_a_sine():
    found, rows = styled("waves"), np.arange(48)
    phases = 2 * np.pi * torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(0)).numpy()
    for image, whole, phase in zip(IMAGES.double().numpy(), found, phases.ravel()):
        x = rows[None, :] + 1.5 * np.sin(2 * np.pi * rows[:, None] / 16 + phase)
        y = np.broadcast_to(rows[:, None], x.shape)
        for channel, moved in zip(image, whole):
            expected = ndimage.map_coordinates(channel, [y, x], order=1, mode="nearest")
            np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_chalk_is_the_sketch_turned_round_on_slate():
    rng = torch.Generator()
    sketch = digits.STYLES["sketch"](IMAGES, rng).numpy()
    np.testing.assert_allclose(styled("chalk"), 1 - 0.85 * sketch, atol=1e-6)


def test_the_gaps_are_accuracies_without_a_cue_minus_that_with_both():
    names = {"id": 0.9, "no-background": 0.6, "no-mark": 0.8, "neither": 0.5}
    request = Request(class_names=digits.CLASS_NAMES, images=10)
    shifts = find_shifts(["digits-marked"], request)
    assert [shift.name for shift in shifts] == [f"digits-marked/{name}" for name in names]
    assert [shift.in_distribution for shift in shifts] == [True, False, False, False]
    counts = {name: round(1000 * value) for name, value in names.items()}
    rows = [
        Row("m", f"digits-marked/{name}", "accuracy", count / 1000, count, 1000, 0.0, 1.0)
        for name, count in counts.items()
    ]
    found = {row.shift: row.value for row in combination_rows(rows, shifts)}
    gaps = {"background": -0.3, "mark": -0.1, "background and mark": -0.4}
    for name, gap in gaps.items():
        assert found[f"digits {name} gap"] == pytest.approx(gap)


def test_the_knobs_of_training_change_what_they_name():
    def made(images: int = 200, **knob) -> tuple:
        return DigitsData(images, 20, **knob).load(Preprocess((48, 48)))

    plain, val = made()
    noisy, clean = made(label_noise=0.2)
    assert int((plain.labels != noisy.labels).sum()) == 40
    assert torch.equal(plain.images, noisy.images)
    assert torch.equal(clean.labels, val.labels)
    for knob in ({"opacity": (0.0, 0.0)}, {"tied": 0.1}, {"mark": 0.95}):
        drawn_so = digits.digit_set("train", 200, 0, **knob)
        assert torch.equal(made(**knob)[0].images, drawn_so.images)
        assert not torch.equal(drawn_so.images, plain.images)
    untied = digits.digit_set("train", 1000, 0, tied=0.1)
    assert independent(untied.labels, untied.backgrounds)


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ({"tied": 1.5}, r"tied in \[0, 1\].*got 1.5"),
        ({"mark": -0.1}, "mark in.*got -0.1"),
        ({"opacity": (0.7, 0.3)}, "opacity in.*ranges ascending.*0.7 to 0.3"),
        ({"label_noise": float("nan")}, "label_noise in.*got nan"),
    ],
)
def test_a_knob_beyond_its_range_is_refused(knob, said):
    with pytest.raises(InputError, match=said):
        DigitsData(**knob)


def test_the_commands_of_the_page_run(tmp_path, tiny_clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plant_run(tmp_path / "runs" / "demo", tiny_clip)
    (block,) = re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S)
    training, evaluation = block.splitlines()
    quick = ["--data.train_images=64", "--data.val_images=20", "--trainer.max_epochs=1"]
    quick += ["--baseline=false", "--wise=0.5"]
    main([*training.split()[1:], *quick, "--evaluation.images=20", "--evaluation.pictures=0"])
    assert "background and mark gap" in capsys.readouterr().out
    main([*evaluation.replace("3000", "20").split()[1:], "--pictures=0"])
    assert "places" in capsys.readouterr().out
    for name in re.findall(r"^\| `--data\.(\w+)`", PAGE, re.M):
        assert name in inspect.signature(DigitsData).parameters
    told = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\|[^|]*\|([^|]*)\| held", PAGE, re.M)))
    sets = [name for sets in digits.WORLDS.values() for name in sets if name not in TRAINING]
    told.remove(CONTEXTS)
    assert told == sets
