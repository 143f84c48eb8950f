from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.digits_sets import DIGITS, NAMES, content, plant

from cfmask import SHIFTS, InputError, digits, evaluate, find_shifts
from cfmask.images import Preprocess
from cfmask.shift import Request
from cfmask.shifts.combinations import COMBINATIONS


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit", "digits"),
        ("fodlers", "folders"),
        ("digits/sketsh", "digits/sketch"),
        ("digits/renditions", "digits/rendition"),
    ],
)
def test_an_unknown_name_brings_the_nearest(name, nearest):
    with pytest.raises(InputError) as caught:
        find_shifts([name], DIGITS)
    assert repr(name) in str(caught.value)
    assert nearest in str(caught.value).split("Nearest: ")[1]


def test_a_family_gives_all_its_sets_with_one_reference():
    found = find_shifts(["digits"], DIGITS)
    names = [shift.name for shift in found]
    short = ["id", "v2", "counter", "sketch", "rendition", "corruption"]
    assert names == [f"digits/{name}" for name in short]
    assert [shift.name for shift in found if shift.in_distribution] == ["digits/id"]
    assert set(COMBINATIONS["O3"].weights) <= set(names) - {"digits/id"}


def test_single_sets_come_in_the_order_they_are_asked_for():
    found = find_shifts(["digits/sketch", "digits/id"], DIGITS)
    assert [shift.name for shift in found] == ["digits/sketch", "digits/id"]


def test_a_set_of_the_digits_world_is_drawn_as_asked():
    (shift,) = find_shifts(["digits/counter"], Request(None, digits.CLASS_NAMES, 20, seed=3))
    data = shift.load(Preprocess((digits.SIZE, digits.SIZE)))
    drawn = digits.digit_set("counter", 20, 3)
    assert len(data) == 20
    assert all(torch.equal(data[i][0], drawn.images[i]) for i in range(20))
    assert [data[i][1] for i in range(20)] == drawn.labels.tolist()


def test_digits_come_at_the_size_of_the_encoder():
    (shift,) = find_shifts(["digits/id"], DIGITS)
    image, _ = shift.load(Preprocess((32, 64)))[0]
    assert image.shape == (3, 32, 64)
    assert image.dtype == torch.uint8


@pytest.mark.parametrize(
    "names", [(), ("cat", "dog"), digits.CLASS_NAMES[::-1], digits.CLASS_NAMES[:9]]
)
def test_digits_are_refused_for_other_class_names(names):
    with pytest.raises(InputError, match="zero"):
        find_shifts(["digits"], Request(class_names=names))


FULL = {"ant": 1, "bee": 1, "cat": 2}


def test_every_folder_beside_training_is_a_set(tmp_path):
    root = plant(tmp_path, {"train": FULL, "val": FULL, "sketches": FULL, "at_night": FULL})
    (root / "notes.txt").write_text("no set")
    found = find_shifts(["folders"], Request(root, NAMES))
    names = ["folders/at_night", "folders/sketches", "folders/val"]
    assert [shift.name for shift in found] == names
    assert content(found[0]) == [(10, 0), (60, 1), (110, 2), (110, 2)]


@pytest.mark.parametrize(
    ("others", "reference"),
    [
        (("val", "test", "id"), ["folders/id"]),
        (("val", "test"), ["folders/test"]),
        (("val",), ["folders/val"]),
        ((), []),
    ],
)
def test_the_reference_is_id_or_test_or_val(tmp_path, others, reference):
    root = plant(tmp_path, {"train": FULL, **{name: FULL for name in (*others, "sketches")}})
    found = find_shifts(["folders"], Request(root, NAMES))
    assert [shift.name for shift in found if shift.in_distribution] == reference


def test_a_single_folder_can_be_asked_for(tmp_path):
    root = plant(tmp_path, {"train": FULL, "val": {"wasp": 1}, "sketches": FULL})
    (shift,) = find_shifts(["folders/sketches"], Request(root, NAMES))
    assert shift.name == "folders/sketches"


def test_labels_follow_the_training_folders_in_a_set_that_lacks_a_class(tmp_path):
    root = plant(tmp_path, {"train": FULL, "sketches": {"cat": 1, "bee": 1}})
    (shift,) = find_shifts(["folders"], Request(root, ("an ant", "a bee", "a cat")))
    assert content(shift) == [(60, 1), (110, 2)]


def test_labels_follow_the_classifier_where_there_are_no_training_folders(tmp_path):
    root = plant(tmp_path, {"sketches": {"ant": 1, "cat": 1}})
    (shift,) = find_shifts(["folders"], Request(root, ("cat", "bee", "ant")))
    assert content(shift) == [(10, 2), (110, 0)]


def test_a_wrong_class_is_refused_before_anything_is_loaded(tmp_path):
    root = plant(tmp_path, {"train": FULL, "sketches": FULL, "val": {"ant": 1, "wasp": 1}})
    with pytest.raises(InputError, match="wasp") as caught:
        find_shifts(["folders"], Request(root, NAMES))
    assert str(root / "val") in str(caught.value)


def test_an_empty_class_folder_is_refused_before_anything_is_loaded(tmp_path):
    root = plant(tmp_path, {"train": FULL, "sketches": {"ant": 1, "bee": 0}})
    with pytest.raises(InputError, match="bee"):
        find_shifts(["folders"], Request(root, NAMES))


def test_another_number_of_classes_than_the_classifier_has_is_refused(tmp_path):
    root = plant(tmp_path, {"train": FULL, "val": FULL})
    with pytest.raises(InputError, match="Expected 2 classes"):
        find_shifts(["folders"], Request(root, ("ant", "bee")))


def test_a_tree_without_test_folders_is_refused(tmp_path):
    root = plant(tmp_path, {"train": FULL})
    with pytest.raises(InputError, match="there are none"):
        find_shifts(["folders"], Request(root, NAMES))


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_folders_need_a_root(tmp_path, root):
    with pytest.raises(InputError, match="data_root"):
        find_shifts(["folders"], Request(root and tmp_path / root, NAMES))


def test_a_set_asked_for_twice_comes_once():
    found = find_shifts(["digits", "digits/sketch", "digits/sketch"], DIGITS)
    names = [shift.name for shift in found]
    assert len(names) == len(set(names))


def test_sets_of_one_name_from_two_families_stand_side_by_side(tmp_path, tiny_clip):
    everything = dict.fromkeys(digits.CLASS_NAMES, 1)
    root = plant(tmp_path, {"sketch": everything, "rendition": everything})
    wanted = ["digits/id", "digits/sketch", "folders"]
    found = find_shifts(wanted, Request(root, digits.CLASS_NAMES, 20))
    report = evaluate({"m": tiny_clip}, found)
    sizes = {"digits/id": 20, "digits/sketch": 20, "folders/rendition": 10, "folders/sketch": 10}
    assert {row.shift: row.total for row in report.of("accuracy") if row.total} == sizes
    assert [report.short(shift) for shift in report.columns()] == [
        *("id", "sketch", "folders/rendition", "folders/sketch"),
        *("mean of shifts", "harmonic mean"),
    ]
    alone = evaluate({"m": tiny_clip}, found[1:2])
    assert alone.value("m", "sketch") == report.value("m", "digits/sketch")
    with pytest.raises(KeyError, match="digits/sketch or folders/sketch"):
        report.value("m", "sketch")


def test_a_family_is_one_function_and_one_entry(monkeypatch):
    (shift,) = find_shifts(["digits/v2"], DIGITS)
    monkeypatch.setitem(SHIFTS, "mine", lambda request: [replace(shift, name="v2")])
    assert find_shifts(["mine/v2"], Request()) == [replace(shift, name="mine/v2")]
