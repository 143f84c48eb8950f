from __future__ import annotations

from pathlib import Path

import pytest
from support.evaluation import in_processes, without_run
from support.imagenet_trees import Sees, find, paint, refusal
from support.imagenet_trees import score as scored

from cfmask import InputError, ShiftReport, evaluate

# Class and seed -> whether the picture at each scale is of its class; written in no order.
TRAJECTORIES = {
    (2, 0): {0: True, 500: True, 2500: True},
    (2, 7): {2500: False, 0: True, 500: False},
    (10, 0): {500: True, 2500: False, 0: True},
    (998, 3): {0: False, 500: True, 2500: True},
}


def plant(root: Path, name: str = "snow") -> Path:
    """A shift whose wrong pictures look like class 300, which none of them is."""
    for (k, seed), right in TRAJECTORIES.items():
        for scale, is_right in right.items():
            # Folders in listing order would be 10, 2, 998.
            place = root / "cns" / name / f"{k}_a class of 5 words"
            paint(place / f"img_{seed}_x_{scale}.jpeg", k if is_right else 300)
    return root / "cns" / name


def test_a_made_up_tree_scores_as_designed(tmp_path):
    plant(tmp_path)
    (shift,) = find(tmp_path, "cns")
    assert (shift.name, shift.averaged, shift.found.images) == ("cns/snow", False, 12)
    report = evaluate({"m": Sees()}, [shift])
    assert report.row("m", "cns/snow").correct == 8
    points = {"scale": [0, 0.5, 2.5, 3], "count": [1, 1, 1, 1]}
    kept = report.details["m"]["cns/snow"]
    assert kept["failures"] == points
    assert kept["scales"] == {"scale": [0, 0.5, 2.5], "correct": [3, 3, 2], "total": [4, 4, 4]}
    assert report.value("m", "cns/snow", "failure_point") == pytest.approx(6 / 4)
    assert report.value("m", "cns/snow", "failure_max") == 3
    assert report.value("m", "cns/snow", "last_drop") == pytest.approx(1 / 4)
    assert report.value("m", "cns/snow", "scale_drop") == pytest.approx(1 / 8)


def test_the_mask_takes_the_argmax_among_the_classes_that_are_there(tmp_path):
    plant(tmp_path)
    (masked,) = find(tmp_path, "cns/snow-masked")
    assert masked.classes == (2, 10, 998)
    (whole,) = find(tmp_path, "cns/snow")
    # A class that none of the pictures is distracts without the mask alone.
    assert scored(whole, distraction=5) == (0, 12)
    assert scored(masked, distraction=5)[0] >= 8


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_figures_of_one(tmp_path, count):
    plant(tmp_path)
    shifts = find(tmp_path, "cns")

    def make(file: Path) -> None:
        evaluate({"m": Sees()}, shifts).save(file)

    in_processes(count, tmp_path / "out", make)
    alone = without_run(evaluate({"m": Sees()}, shifts))
    for rank in range(count):
        assert without_run(ShiftReport.load(tmp_path / "out" / f"{rank}.json")) == alone


def test_what_tells_no_class_seed_or_scale_is_refused(tmp_path):
    assert "none of cns, CNS-Bench" in refusal(tmp_path, "cns")
    home = plant(tmp_path)
    assert "cns/snow" in refusal(tmp_path, "cns/snwo")
    stray = home / "2_a class of 5 words" / "img_500.jpeg"
    paint(stray, 2)
    assert "img_SEED_SCALE.jpeg" in refusal(tmp_path, "cns")
    stray.rename(stray.with_name("img_0_half.jpeg"))
    assert "img_0_half.jpeg; rename or remove it" in refusal(tmp_path, "cns")
    stray.with_name("img_0_half.jpeg").rename(stray.with_name("img_0_3000.jpeg"))
    assert "from 0 to below 3, but got 3" in refusal(tmp_path, "cns")
    stray.with_name("img_0_3000.jpeg").unlink()
    paint(home / "n01440764" / "img_0_0.jpeg", 0)
    assert "but got 01440764; leave it out" in refusal(tmp_path, "cns")


def test_one_scale_twice_is_refused_before_an_image_is_read(tmp_path):
    paint(plant(tmp_path) / "2_a class of 5 words" / "other_7_500.jpeg", 2)
    (shift,) = find(tmp_path, "cns")
    with pytest.raises(InputError, match=r"2/7 has 0\.5 twice; remove one"):
        evaluate({"m": Sees()}, [shift])
