"""Sets whose images lie in contexts: made-up trees score as designed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.digits_sets import NAMES
from support.evaluation import in_processes, models, painted, without_run
from support.imagenet_trees import SIDE, Sees, colour, paint

from cfmask import InputError, Preprocess, Request, ShiftReport, digits, evaluate, find_shifts
from cfmask.data.datamodule import Tensors
from cfmask.shifts.contexts import GROUPS, RATIO, TEST
from cfmask.shifts.named_folders import own_class_names

pytestmark = pytest.mark.drawn

TINY = Preprocess((SIDE, SIDE))
CARS = ("urban car", "country car")
# Class, context, and as which class each image is painted.
TREE = {
    ("ant", "ant(sofa)"): [0, 0, 0],
    ("ant", "ant(grass)"): [0, 1],
    ("bee", "bee(sofa)"): [2, 2, 2, 1],
}


def plant(root: Path, tree: Mapping[tuple[str, str], list[int]]) -> Path:
    for (name, context), shown in tree.items():
        for i, k in enumerate(shown):
            paint(root / name / context / f"{i}.jpg", k)
    return root


def find(root: Path, family: str, names=NAMES):
    return find_shifts([family], Request(root, names))


def refusal(root: Path, family: str, names=NAMES) -> str:
    with pytest.raises(InputError) as caught:
        find(root, family, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", ["folders", "contexts"])
def test_a_tree_of_contexts_scores_as_designed(tmp_path, family):
    plant(tmp_path / "meta", TREE)
    (shift,) = find(tmp_path, family)
    assert shift.name == f"{family}/meta"
    report = evaluate({"m": Sees()}, [shift])
    groups = report.details["m"][shift.name]["groups"]
    assert dict(zip(groups["names"], zip(groups["correct"], groups["total"]))) == {
        "ant(grass)": (1, 2),
        "ant(sofa)": (3, 3),
        "bee(sofa)": (1, 4),
    }
    found = {row.metric: row for row in report.rows}
    assert found["accuracy"].value == pytest.approx(5 / 9)
    assert found["group_mean"].value == pytest.approx((1 / 2 + 1 + 1 / 4) / 3)
    assert (found["worst_group"].value, found["worst_group"].note) == (1 / 4, "bee(sofa)")
    assert (found["disparity"].value, found["disparity"].note) == (3 / 4, "ant(sofa) − bee(sofa)")
    # Shares of training are not known, nor what a context lacks.
    assert not {"id_accuracy", "bg_gap"} & set(found)


def test_contexts_are_named_with_their_class(tmp_path):
    plant(tmp_path / "meta", {("ant", "Asia"): [0], ("bee", "Asia"): [1], ("bee", "Europe"): [1]})
    (shift,) = find(tmp_path, "contexts")
    assert shift.group_names == ("ant(Asia)", "bee(Asia)", "bee(Europe)")
    assert shift.groups == (0, 1, 2)


def test_a_picture_beside_the_contexts_leaves_none(tmp_path):
    paint(plant(tmp_path / "meta", TREE) / "bee" / "alone.jpg", 1)
    (shift,) = find(tmp_path, "folders")
    assert (shift.groups, shift.group_names) == (None, ())
    assert "contexts in the set meta" in refusal(tmp_path, "contexts")
    paint(tmp_path / "plain" / "bee" / "x.jpg", 1)
    assert find_shifts(["folders/plain"], Request(tmp_path, NAMES))[0].groups is None


def test_metashifts_names_tell_classes_from_contexts(tmp_path):
    plant(tmp_path / "meta", TREE)
    assert own_class_names(tmp_path) == ("ant", "bee")


def test_the_digits_world_has_contexts():
    few = Request(None, digits.CLASS_NAMES, 20, seed=3)
    (small,) = find_shifts(["digits/contexts"], few)
    data, drawn = small.load(Preprocess((48, 48))), digits.digit_set("id", 20, 3, tied=0.5)
    assert torch.equal(data.images, drawn.images) and torch.equal(data.labels, drawn.labels)
    for group, label, place in zip(small.groups, drawn.labels, drawn.backgrounds):
        own = digits.CLASS_NAMES[label] if label == place else "others"
        assert small.group_names[group] == f"{own} on {digits.BACKGROUNDS[place]}"
        assert small.absent[group] == ("" if label == place else "BG")
    # The shares are those of images drawn for training.
    labels, places = digits.cues("train", 20_000, 0)
    found = torch.bincount(2 * places + (labels != places), minlength=20) / 20_000
    assert np.allclose(found, small.training_shares, atol=0.01)
    # Who reads the background alone is right in half of the groups, and in 95 % of training.
    (shift,) = find_shifts(["digits/contexts"], replace(few, images=400))
    labels, places = digits.cues("id", 400, 3, tied=0.5)
    seen = torch.tensor([colour(k) for k in places], dtype=torch.uint8)
    seen = Tensors(seen.view(-1, 3, 1, 1).expand(-1, -1, SIDE, SIDE), labels)
    ground = replace(shift, load=lambda look: seen)
    found = {r.metric: r.value for r in evaluate({"m": Sees()}, [ground]).rows}
    figures = ("worst_group", "group_mean", "disparity", "id_accuracy", "bg_gap")
    assert [found[name] for name in figures] == pytest.approx([0, 0.5, 1, 0.95, -0.95])
    assert "digits/contexts" not in [s.name for s in find_shifts(["digits"], few)]


def plant_cars(root: Path, wrong: Mapping[str, int], each: int = 4) -> Path:
    """The eight groups, of so many images each; of some of them so many are painted wrong."""
    for name, (car, _, _) in GROUPS.items():
        k = int(car == "country")
        for i in range(each):
            paint(root / name / f"{i:03d}.jpg", 1 - k if i < wrong.get(name, 0) else k)
            paint(root / name / f"{i:03d}_mask.png", 9)
    return root


def wrong_cars() -> dict[str, int]:
    """One wrong without the object, two without the background, three without both."""
    facts = {name: (2 * (b != c) + (o != c)) for name, (c, b, o) in GROUPS.items()}
    return {name: count for name, count in facts.items() if count}


def test_the_gaps_of_urbancars_are_those_of_their_definition(tmp_path):
    plant_cars(tmp_path / "urbancars" / TEST / "test", wrong_cars())
    (shift,) = find(tmp_path, "urbancars", CARS)
    assert (shift.name, shift.found.images) == ("urbancars/test", 32)
    report = evaluate({"m": Sees()}, [shift])
    found = {row.metric: row for row in report.rows}
    # Accuracy by (background present, object present), as the authors' code has it.
    table = np.array([[1 / 4, 2 / 4], [3 / 4, 4 / 4]])
    ratio = np.array([1 - RATIO, RATIO])
    shares = np.outer(ratio, ratio)
    inside = (table * shares).sum()
    for metric, share in (
        ("id_accuracy", inside),
        ("bg_gap", table[0, 1] - inside),
        ("co_obj_gap", table[1, 0] - inside),
        ("bg_co_obj_gap", table[0, 0] - inside),
    ):
        assert found[metric].value == pytest.approx(share)
    assert found["bg_gap"].value < 0, "a model that relies on the background loses without it"
    # Two groups of four for each cell of the table, with independent binomial errors.
    weights = -shares
    weights[0, 1] += 1
    variance = (weights**2 * table * (1 - table) / 8).sum()
    reach = norm.ppf(0.975) * np.sqrt(variance)
    assert found["bg_gap"].high - found["bg_gap"].value == pytest.approx(reach)
    assert found["worst_group"].value == 1 / 4


def test_a_model_without_shortcuts_has_no_gap(tmp_path):
    plant_cars(tmp_path / TEST / "val", {})
    (shift,) = find_shifts(["urbancars/val"], Request(tmp_path, ("country", "urban")))
    # Labels go by name: the classes of this head are the other way round.
    report = evaluate({"m": Sees()}, [shift])
    assert report.value("m", "urbancars/val") == 0
    plant_cars(tmp_path / TEST / "test", {})
    (shift,) = find(tmp_path, "urbancars", ("urban", "country"))
    report = evaluate({"m": Sees()}, [shift])
    gaps = [report.value("m", "urbancars/test", f"{kind}_gap") for kind in ("bg", "co_obj")]
    assert gaps == pytest.approx([0, 0])


def test_what_is_wrong_with_urbancars_is_said_in_one_line(tmp_path):
    assert "no such folder" in refusal(tmp_path, "urbancars", CARS)
    folder = plant_cars(tmp_path / "urbancars" / TEST / "test", {}, each=1)
    assert "a classifier of urban car and country car" in refusal(tmp_path, "urbancars", NAMES)
    name = next(iter(GROUPS))
    (folder / name / "000.jpg").unlink()
    assert f"none in {name}" in refusal(tmp_path, "urbancars", CARS)
    (folder / name).rename(folder / "obj-urban_bg-sea")
    assert "got obj-urban_bg-sea" in refusal(tmp_path, "urbancars", CARS)


def crossed(count: int):
    """A set whose last third misleads, in three groups that no third is."""
    facts = {
        "groups": tuple(k % 3 for k in range(count)),
        "group_names": ("a", "b", "c"),
        "training_shares": (0.5, 0.3, 0.2),
        "absent": ("", "BG", "BG+CoObj"),
    }
    return replace(painted("crossed", count, count // 3), **facts)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_have_equal_figures_of_groups(tmp_path, count):
    def make(path: Path) -> None:
        evaluate(models(), [crossed(20)], batch_size=3).save(path)

    in_processes(count, tmp_path / "out", make)
    make(tmp_path / "one.json")
    one = without_run(ShiftReport.load(tmp_path / "one.json"))
    assert {"disparity", "id_accuracy", "bg_gap"} <= {row.metric for row in one.rows}
    for rank in range(count):
        assert without_run(ShiftReport.load(tmp_path / "out" / f"{rank}.json")) == one


def test_measures_of_groups_are_those_of_numpy():
    report = evaluate(models(), [crossed(20)])
    right = np.arange(20) < 14
    shares = [right[np.arange(20) % 3 == g].mean() for g in range(3)]
    inside = np.dot(shares, [0.5, 0.3, 0.2])
    expected = {
        "group_mean": np.mean(shares),
        "disparity": max(shares) - min(shares),
        "id_accuracy": inside,
        "bg_gap": shares[1] - inside,
        "bg_co_obj_gap": shares[2] - inside,
    }
    rows = {row.metric: row.value for row in report.rows if row.model == "misled"}
    assert {name: rows[name] for name in expected} == pytest.approx(expected)
    assert "co_obj_gap" not in rows


def test_the_page_draws_the_groups_of_every_set_that_has_some():
    from cfmask.reporting.group_charts import MOST_GROUPS, group_charts
    from cfmask.reporting.page import as_html

    count = MOST_GROUPS + 1
    many = replace(
        painted("many", 2 * count, 2),
        groups=tuple(k % count for k in range(2 * count)),
        group_names=tuple(f"g{k}" for k in range(count)),
    )
    report = evaluate(models(), [crossed(20), many, painted("plain", 5)])
    few, most = group_charts(report, {"good": 0, "misled": 1})
    assert (few["name"], few["words"]) == ("crossed", "")
    assert most["words"] == f"The {MOST_GROUPS} worst of {count} groups."
    # The last two images mislead, so their groups are the worst of all.
    assert all(f">g{k}</text>" in most["svg"] for k in (count - 2, count - 1))
    assert f">g{count - 3}</text>" not in most["svg"]
    for number in (0, 1):
        assert few["svg"].count(f"fill: var(--series-{number})") == 3, "a bar for each group"
    page = as_html(report)
    assert 'id="groups"' in page and few["svg"] in page
    assert 'id="groups"' not in as_html(evaluate(models(), [painted("plain", 5)]))


def test_without_a_group_of_training_there_is_no_accuracy_in_distribution():
    report = evaluate(models(), [replace(crossed(20), groups=(0, 1) * 10)])
    assert report.of("disparity") and not report.of("id_accuracy") and not report.of("bg_gap")
    alone = evaluate(models(), [replace(crossed(20), groups=(0,) * 20)])
    assert alone.of("group_mean") and not alone.of("disparity")
