from __future__ import annotations

import json
import shutil

import pytest
from support.imagenet_trees import ORIGINS, Sees, find, paint, plant_one, refusal, score

from cfmask import InputError, evaluate
from cfmask.images import Preprocess
from cfmask.shift import Size
from cfmask.shifts.combinations import COMBINATIONS
from cfmask.shifts.imagenet import IMAGENET
from cfmask.wordnet import synsets


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_a_folder_of_sets_is_needed(tmp_path, root):
    assert "data_root" in refusal(root and tmp_path / root, "imagenet")


def test_nothing_found_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    said = refusal(tmp_path, "imagenet")
    assert "found none" in said
    assert "imagenet-r" in said


def test_a_classifier_of_other_classes_is_refused(everything):
    assert "1000" in refusal(everything, "imagenet", class_names=["cat", "dog"])
    other = (*synsets()[1:], synsets()[0])
    assert "sorted order" in refusal(everything, "imagenet", class_names=other)
    assert find(everything, "imagenet/r", class_names=synsets())


def test_an_unknown_set_brings_the_nearest(everything):
    assert "imagenet/sketch" in refusal(everything, "imagenet/sketsh").split("Nearest: ")[1]


def test_a_missing_set_that_is_asked_for_is_refused(tmp_path):
    plant_one(tmp_path, "r")
    said = refusal(tmp_path, "imagenet", "imagenet/sketch")
    assert all(place in said for place in ORIGINS["sketch"].places)
    assert ORIGINS["sketch"].source in said


FOUR = ("v2", "r", "sketch", "a")


def test_the_family_is_what_is_there_and_the_protocol_names_the_rest(tmp_path):
    for name in FOUR:
        plant_one(tmp_path, name)
    report = evaluate({"m": Sees()}, find(tmp_path, "imagenet"))
    assert list(report.protocol["sets"]) == [f"imagenet/{name}" for name in FOUR]
    assert report.protocol["missing sets"] == ["imagenet/objectnet", "imagenet/val"]
    assert set(report.protocol["means"]) == {"mean of 4", "mean of shifts"}
    assert report.reference is None


def test_a_wrong_number_of_images_is_refused_unless_allowed(tmp_path):
    # The whole of V2 as empty files, and beside it a set that is incomplete, which is no matter.
    place = tmp_path / ORIGINS["v2"].places[0]
    for k in range(1000):
        (place / str(k)).mkdir(parents=True)
        for i in range(10):
            (place / str(k) / f"{i}.jpeg").touch()
    plant_one(tmp_path, "r")
    (shift,) = find(tmp_path, "imagenet/v2", small=False)
    assert shift.found == shift.expected == Size(10_000, 1000)
    assert [label for _, label in shift.load(Preprocess()).samples[::10]] == sorted(
        range(1000), key=str
    )
    (place / "7" / "10.jpeg").touch()
    assert "10001 of 1000" in refusal(tmp_path, "imagenet/v2", small=False)
    shutil.rmtree(place / "7")
    said = refusal(tmp_path, "imagenet", small=False)
    assert "Expected 10000 images of 1000 classes" in said
    assert "9990 of 999" in said
    assert find(tmp_path, "imagenet")[0].found == Size(9990, 999)


def test_the_published_sizes():
    sizes = {name: (o.expected.images, o.expected.classes) for name, o in IMAGENET.items()}
    assert sizes == {
        "val": (50_000, 1000),
        "v2": (10_000, 1000),
        "r": (30_000, 200),
        "sketch": (50_889, 1000),
        "a": (7500, 200),
        "objectnet": (18_574, 113),
        "real": (46_837, 1000),
        "val on R classes": (10_000, 200),
        "val on A classes": (10_000, 200),
        "v2-threshold0.7": (10_000, 1000),
        "v2-top-images": (10_000, 1000),
    }


def test_a_set_without_any_image_is_refused_even_if_incomplete_ones_are_allowed(tmp_path):
    (tmp_path / "imagenet-r" / synsets()[1]).mkdir(parents=True)
    assert "found 0 of 0" in refusal(tmp_path, "imagenet/r")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("r", synsets()[0]),
        ("a", synsets()[0]),
        ("r", "cats"),
        ("val", "cats"),
        ("sketch", "n00000001"),
        ("v2", "1000"),
        ("v2", "01"),
        ("v2", synsets()[0]),
        ("objectnet/images", "spaceship"),
    ],
)
def test_a_folder_of_another_class_is_refused(tmp_path, name, folder):
    name, _, inner = name.partition("/")
    plant_one(tmp_path, name)
    paint(tmp_path / ORIGINS[name].places[0] / inner / folder / "x.png", 0)
    assert folder in refusal(tmp_path, f"imagenet/{name}")


@pytest.mark.parametrize(
    "name",
    [
        "folder_to_objectnet_label.json",
        "objectnet_to_imagenet_1k.json",
        "pytorch_to_imagenet_2012_id.json",
        "imagenet_to_label_2012_v2",
    ],
)
def test_objectnet_needs_its_mapping_files(tmp_path, name):
    plant_one(tmp_path, "objectnet")
    file = tmp_path / "objectnet-1.0" / "mappings" / name
    content = file.read_text()
    for damaged in ("", "{", "[1]", content[: len(content) // 2]):
        file.write_text(damaged)
        assert "objectnet-1.0" in refusal(tmp_path, "imagenet/objectnet")
    file.unlink()
    said = refusal(tmp_path, "imagenet/objectnet")
    assert name in said
    assert "objectnet.dev" in said


def test_a_label_of_two_classes_is_refused(tmp_path):
    plant_one(tmp_path, "objectnet")
    file = tmp_path / "objectnet-1.0" / "mappings" / "objectnet_to_imagenet_1k.json"
    file.write_text(json.dumps({"The mug": "crane"}))
    assert "Cannot read ObjectNet's classes" in refusal(tmp_path, "imagenet/objectnet")


def test_an_unreadable_picture_is_named(tmp_path):
    plant_one(tmp_path, "r")
    broken = tmp_path / "imagenet-r" / synsets()[1] / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        score(find(tmp_path, "imagenet/r")[0])


def test_the_protocol_states_the_rule_of_each_set(everything):
    protocol = evaluate({"m": Sees()}, find(everything, "imagenet")).protocol
    assert json.loads(json.dumps(protocol)) == protocol
    sets = {name.removeprefix("imagenet/"): rule for name, rule in protocol["sets"].items()}
    assert [sets[name]["classes"] for name in ("val", "v2", "r", "a")] == ["all", "all", 200, 200]
    assert sets["val on R classes"]["classes"] == sets["val on A classes"]["classes"] == 200
    assert sets["objectnet"]["classes"] == 6
    assert "3 classes of the set, 2 of them with several" in sets["objectnet"]["one_to_many"]
    assert "one_to_many" not in sets["r"]
    assert "2 pixels cropped from each side before resizing" in sets["objectnet"]["note"]
    assert sets["a"]["size"] == {
        "found": {"images": 3, "classes": 3},
        "expected": {"images": 7500, "classes": 200},
        "complete": False,
    }
    for name in ("val on R classes", "val on A classes"):
        assert sets[name]["size"]["expected"] == {"images": 10_000, "classes": 200}
    assert all(facts["source"].startswith("https://") for facts in sets.values())
    assert all(facts["licence"] for facts in sets.values())
    assert protocol["missing sets"] == []


def test_means_leave_clean_sets_out_and_weigh_the_others_alike(everything):
    # All images are called class 6, but for ObjectNet, where no class is favoured: the first wins.
    model = Sees(6)
    model.encoder.scale.data.zero_()
    report = evaluate({"m": model}, find(everything, "imagenet"))
    accuracy = {"v2": 0, "r": 2 / 4, "sketch": 0, "a": 1 / 3, "objectnet": 3 / 6}
    assert {name: report.value("m", name) for name in accuracy} == accuracy
    assert report.value("m", "mean of 5") == pytest.approx(sum(accuracy.values()) / 5)
    assert report.value("m", "mean of 4") == pytest.approx((2 / 4 + 1 / 3) / 4)
    assert report.value("m", "mean of shifts") == pytest.approx(report.value("m", "mean of 5"))
    assert report.protocol["means"]["mean of 5"] == list(COMBINATIONS["mean of 5"].weights)
    assert report.protocol["means"]["mean of 4"] == [f"imagenet/{name}" for name in FOUR]
