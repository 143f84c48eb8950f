from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.digits_sets import NAMES, plant
from support.imagenet_trees import SIDE, Sees, paint

from cfmask import InputError, evaluate, find_shifts
from cfmask.data.file_index import class_folders
from cfmask.images import Preprocess
from cfmask.shift import Request
from cfmask.shifts.named_folders import class_order, own_class_names

BIRDS = ("landbird", "waterbird")
TINY = Preprocess((SIDE, SIDE))
FULL = {"ant": 1, "bee": 1, "cat": 2}


def folders(root: Path, class_names=NAMES):
    return find_shifts(["folders"], Request(root, class_names))


def labels(shift) -> list[int]:
    data = shift.load(TINY)
    return [int(data[i][1]) for i in range(len(data))]


def refusal(root: Path, class_names=NAMES) -> str:
    with pytest.raises(InputError) as caught:
        folders(root, class_names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Waterbirds as it is published: species folders, and a list with class, split and place. The colour
# of head class 0 or 1 is painted, but for waterbirds on land, which look like landbirds.
WATERBIRDS = [
    (y, split, place, shown)
    for split in (0, 1, 2)
    for y, place, shown in [(0, 0, 0), (0, 1, 0), (1, 1, 1), (1, 1, 1), (1, 0, 0)]
]


def plant_waterbirds(root: Path, name: str = "metadata.csv") -> None:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (y, split, place, shown) in enumerate(WATERBIRDS):
        image = f"{i:03d}.Some_Bird/bird_{i}.jpg"
        paint(root / image, shown)
        lines.append(f"{i},{image},{y},{split},{place},/o/ocean/00.jpg")
    (root / name).write_text("\n".join(lines))


def test_waterbirds_is_read_by_its_list_with_class_and_place_as_groups(tmp_path):
    plant_waterbirds(tmp_path)
    test, val = folders(tmp_path, BIRDS)
    assert (test.name, val.name) == ("folders/test", "folders/val")
    assert labels(test) == labels(val) == [0, 0, 1, 1, 1]
    assert [test.group_names[g] for g in test.groups] == [
        "landbird, place 0",
        "landbird, place 1",
        "waterbird, place 1",
        "waterbird, place 1",
        "waterbird, place 0",
    ]


def test_the_worst_group_of_waterbirds_is_where_the_background_misleads(tmp_path):
    plant_waterbirds(tmp_path)
    shifts = folders(tmp_path, BIRDS)
    rows = {(row.shift, row.metric): row for row in evaluate({"m": Sees()}, shifts).rows}
    assert rows["folders/test", "accuracy"].value == pytest.approx(4 / 5)
    worst = rows["folders/test", "worst_group"]
    assert (worst.value, worst.total, worst.note) == (0, 1, "waterbird, place 0")
    # In training, two fifths are waterbirds on water and the other groups one fifth each.
    assert rows["folders/test", "id_accuracy"].value == pytest.approx(4 / 5)
    lines = (tmp_path / "metadata.csv").read_text().splitlines()
    extra = [line for line in lines if line.split(",")[2:5] == ["1", "0", "0"]]
    (tmp_path / "metadata.csv").write_text("\n".join([*lines, *extra * 5]))
    rows = evaluate({"m": Sees()}, folders(tmp_path, BIRDS)).of("id_accuracy")
    assert [row.value for row in rows] == pytest.approx([4 / 10] * 2)


def test_folders_called_like_published_sets_have_none_of_their_figures(tmp_path):
    names = ("val", "v2", "r", "sketch", "a", "objectnet", "counter", "rendition")
    plant(tmp_path, dict.fromkeys(names, FULL))
    report = evaluate({"m": Sees()}, folders(tmp_path))
    assert set(report.protocol["means"]) == {"mean of shifts"}
    assert not report.fits
    assert not report.of("effective_robustness_logit")


def test_a_list_in_the_folder_of_a_set_gives_its_test_images(tmp_path):
    plant(tmp_path, {"train": {"landbird": 1, "waterbird": 1}})
    plant_waterbirds(tmp_path / "birds")
    (shift,) = folders(tmp_path, BIRDS)
    assert shift.name == "folders/birds"
    assert len(shift.groups) == len(shift.load(TINY)) == 5


def test_a_list_of_names_and_regions_is_read_whole(tmp_path):
    # The layout of GeoDE: images/ beside an index without splits.
    lines = ["file_path,object,region,ip_country"]
    for i, (name, region) in enumerate(
        [("hand_soap", "Africa"), ("dog", "Europe"), ("dog", "Africa")]
    ):
        paint(tmp_path / "geode" / "images" / f"{i}.jpg", i)
        lines.append(f"{i}.jpg,{name},{region},Chad")
    (tmp_path / "geode" / "index.csv").write_text("\n".join(lines))
    (shift,) = folders(tmp_path, ("dog", "hand soap"))
    assert labels(shift) == [1, 0, 0]
    assert (shift.groups, shift.group_names) == ((0, 1, 0), ("Africa", "Europe"))


def test_a_list_without_groups_has_none(tmp_path):
    paint(tmp_path / "x.png", 1)
    (tmp_path / "metadata.csv").write_text("path,label,split\nx.png,1,test\n")
    (shift,) = folders(tmp_path, BIRDS)
    assert (shift.groups, shift.group_names) == (None, ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,y,split\nnone.png,1,2\n", "none.png"),
        ("path,y,split\nx.png,2,2\n", "numbers below 2"),
        ("path,y,split\nx.png,sparrow,2\n", "'sparrow'"),
        ("path,split\nx.png,2\n", "y, label, class or object"),
        ("y,split\n1,2\n", "img_filename"),
        ("path,y,split\nx.png,1,0\n", "test or val split"),
        ("path,y,split\nx.png\n", "line 2"),
        ("path,y,split\n", "it has none"),
        ("", "it has none"),
        (b"\xff\xfe\x00", "Cannot read"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, content, said):
    paint(tmp_path / "x.png", 1)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "metadata.csv").write_bytes(data)
    assert said in refusal(tmp_path, BIRDS)


PACS = ("dog", "elephant", "giraffe")


def test_the_domains_of_pacs_are_sets(tmp_path):
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for k, name in enumerate(PACS):
            paint(tmp_path / domain / name / "pic_001.png", k)
    found = folders(tmp_path, PACS)
    names = [shift.name.removeprefix("folders/") for shift in found]
    assert names == ["art_painting", "cartoon", "photo", "sketch"]
    assert not any(shift.in_distribution or shift.groups for shift in found)
    assert all(labels(shift) == [0, 1, 2] for shift in found)


def test_the_domains_of_pacs_are_the_groups_of_one_set(tmp_path):
    # Cartoons of giraffes look like dogs.
    for domain in ("art_painting", "cartoon"):
        for k, name in enumerate(PACS):
            paint(tmp_path / "pacs" / domain / name / "pic_001.png", 0 if domain[0] == "c" else k)
    (shift,) = folders(tmp_path, PACS)
    assert shift.group_names == ("art_painting", "cartoon")
    assert shift.groups == (0, 0, 0, 1, 1, 1)
    assert labels(shift) == [0, 1, 2, 0, 1, 2]
    rows = evaluate({"m": Sees()}, [shift]).rows
    (worst,) = (row for row in rows if row.metric == "worst_group")
    assert (worst.correct, worst.total, worst.note) == (1, 3, "cartoon")


def test_groups_may_lack_classes_but_not_have_others(tmp_path):
    plant(tmp_path, {"test/night": {"ant": 1}, "test/day": {"bee": 2, "cat": 1}})
    (shift,) = folders(tmp_path)
    assert (shift.groups, shift.group_names) == ((0, 0, 0, 1), ("day", "night"))
    assert labels(shift) == [1, 1, 2, 0]
    plant(tmp_path, {"test/dusk": {"wasp": 1}})
    assert "wasp" in refusal(tmp_path)


def test_a_folder_beside_the_classes_is_no_group(tmp_path):
    plant(tmp_path, {"test": {**FULL, "wasp": 1}})
    assert "wasp" in refusal(tmp_path)


def test_training_folders_called_as_the_classes_have_the_order_of_the_classifier(tmp_path):
    plant(tmp_path, {"train": FULL, "test": FULL})
    (shift,) = folders(tmp_path, ("Cat", "ant", "bee"))
    assert labels(shift) == [1, 2, 0, 0]
    assert "folder is called by" in shift.note


def test_training_folders_that_contradict_the_classes_are_refused(tmp_path):
    plant(tmp_path, {"train": FULL, "test": FULL})
    said = refusal(tmp_path, ("cat", "wasp", "bee"))
    assert "'bee' is folder 1 and class 2" in said


def test_training_folders_of_other_names_stand_for_the_classes_in_their_order(tmp_path):
    plant(tmp_path, {"train": FULL, "test": FULL})
    (shift,) = folders(tmp_path, ("n01", "bee", "n02"))
    assert labels(shift) == [0, 1, 2, 2]
    assert "ant = n01, bee = bee, cat = n02" in shift.note


def test_underscores_and_capitals_make_no_difference(tmp_path):
    plant(tmp_path, {"sketches": {"Golden_Retriever": 1, "tabby cat": 1}})
    (shift,) = folders(tmp_path, ("tabby_cat", "golden retriever"))
    assert labels(shift) == [1, 0]


@pytest.mark.parametrize("train", [True, False])
def test_classes_that_differ_in_capitals_alone_are_told_apart(tmp_path, train):
    names = ("ant", "Ant", "bee")
    for part in ("train", "test") if train else ("test",):
        for k, name in enumerate(names):
            paint(tmp_path / part / name / "x.png", k)
    (shift,) = folders(tmp_path, names)
    data = shift.load(TINY)
    order = [Path(path).parent.name for path, _ in data.samples]
    assert {name: names[k] for name, k in zip(order, labels(shift))} == dict(zip(names, names))
    (tmp_path / "test" / "Ant").rename(tmp_path / "test" / "ANT")
    assert "'ANT' may be 'ant' or 'Ant'" in refusal(tmp_path, names)


def test_two_folders_that_may_be_one_class_are_refused(tmp_path):
    plant(tmp_path, {"test": {"ant": 1, "Ant": 1, "bee": 1}})
    assert "'Ant' and 'ant' may be 'ant'" in refusal(tmp_path)
    (tmp_path / "train").mkdir()
    plant(tmp_path / "train", {"": {"ant": 1, "Ant": 1, "bee": 1}})
    assert "'Ant' and 'ant' may be 'ant'" in refusal(tmp_path)


@pytest.mark.parametrize("classes", [("ant", "Ant"), ("Ant", "ant"), ("ant", "a", "Ant")])
def test_a_list_tells_classes_apart_that_differ_in_capitals(tmp_path, classes):
    paint(tmp_path / "x.png", 1)
    (tmp_path / "metadata.csv").write_text("path,y\nx.png,Ant\nx.png,ant\nx.png,ant\n")
    (shift,) = folders(tmp_path, classes)
    assert [classes[k] for k in labels(shift)] == ["Ant", "ant", "ant"]
    (tmp_path / "metadata.csv").write_text("path,y\nx.png,ANT\n")
    assert "'ANT' may be" in refusal(tmp_path, classes)


def test_the_order_of_classes_is_what_a_plain_loop_finds(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"thing_{k}" for k in range(12)]
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
    wanted = [names[k].replace("_", " ") for k in rng.permutation(12)]
    order, _ = class_order(class_folders(tmp_path / "train"), wanted, "train")
    assert [name.replace("_", " ") for name in order] == wanted


def test_listed_images_are_upright(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (8, 8))
    picture.paste((255, 0, 0), (0, 0, 8, 4))
    turned = Image.Exif()
    turned[0x0112] = 3
    picture.save(tmp_path / "x.png", exif=turned)
    (tmp_path / "metadata.csv").write_text("path,y\nx.png,0\n")
    (test,) = folders(tmp_path, BIRDS)
    image, _ = test.load(TINY)[0]
    assert torch.equal(image[0, :4], torch.zeros(4, 8, dtype=torch.uint8))
    assert (image[0, 4:] == 255).all()


@pytest.mark.parametrize(
    "tree",
    [
        {"train": FULL, "test": {"ant": 1}},
        {"test": {"ant": 1, "bee": 1}, "sketches": {"cat": 1}},
        {"test/day": {"ant": 1, "cat": 1}, "test/night": {"bee": 1}},
    ],
)
def test_the_classes_of_own_sets_are_told_without_a_classifier(tmp_path, tree):
    plant(tmp_path, tree)
    assert own_class_names(tmp_path) == ("ant", "bee", "cat")


@pytest.mark.parametrize("place", [".", "geode"])
def test_a_list_tells_its_classes_if_it_names_them(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    file = tmp_path / place / "index.csv"
    file.write_text("file_path,object\nx.png,hand_soap\ny.png,dog\nz.png,dog\n")
    assert own_class_names(tmp_path) == ("dog", "hand soap")
    file.write_text("file_path,y\nx.png,1\ny.png,0\n")
    with pytest.raises(InputError, match="got numbers"):
        own_class_names(tmp_path)


def test_an_unreadable_image_of_a_group_can_count_as_wrong(tmp_path):
    plant(tmp_path, {"test/day": {"ant": 1}, "test/night": {"ant": 1}})
    (tmp_path / "test" / "night" / "ant" / "broken.png").write_bytes(b"no picture")
    (shift,) = folders(tmp_path)
    report = evaluate({"m": Sees()}, [shift], unreadable="wrong")
    assert next(row.total for row in report.rows if row.metric == "accuracy") == 3
    with pytest.raises(InputError, match=r"broken\.png"):
        evaluate({"m": Sees()}, [shift])
