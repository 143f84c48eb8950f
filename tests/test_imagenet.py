from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn
from torchvision.datasets import imagenet as reference

from cfmask import SHIFTS, Classifier, InputError, evaluate, find_shifts
from cfmask.classifier import Layout
from cfmask.data.folders import Folder
from cfmask.data.imagenet import ORIGINS, Pictures, subset, synsets
from cfmask.data.images import Preprocess
from cfmask.data.shifts import MEANS, Request, Shift, Size
from cfmask.metrics import right

SIDE = 8
R, A = subset("r"), subset("a")
RED = (255, 0, 0)
# ObjectNet's folders here: classes of the head that each is, none for one that ImageNet lacks.
OBJECTS = {"bicycle": (444, 671), "chair": (423, 559, 765), "mug": (504,), "loofah": ()}


def colour(k: int) -> tuple[int, int, int]:
    """The colour of a head class."""
    return k // 10, k % 10 * 20, 7


class ReadsTheColour(nn.Module):
    """Features (B, 1000): one-hot of the class whose colour the first pixel has.

    A class that distracts has a higher logit, whatever is in the image.
    """

    def __init__(self, distraction: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.distraction = distraction

    def forward(self, images):
        red, green, _ = (images[:, :, 0, 0] * 255).round().long().unbind(1)
        logits = nn.functional.one_hot((red * 10 + green // 20).clamp(0, 999), 1000) * self.scale
        if self.distraction is not None:
            logits[:, self.distraction] = 2
        return logits


class Sees(Classifier):
    """A classifier of 1000 classes with the encoder's features as logits."""

    def __init__(self, distraction: int | None = None) -> None:
        spec = {
            "family": "Sees",
            "model": "ReadsTheColour",
            "class_names": [f"class {k}" for k in range(1000)],
            "preprocess": {**asdict(Preprocess()), "size": [SIDE, SIDE]},
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        }
        super().__init__(ReadsTheColour(distraction), nn.Identity(), spec)
        self.eval()

    @classmethod
    def architecture(cls, spec):
        raise NotImplementedError("the tests do not rebuild it")

    @classmethod
    def layout_of(cls, encoder, image_size):
        return Layout((1, 1), "")


NAMES = Sees().class_names


def paint(path: Path, k: int, size: tuple[int, int] = (12, 12)) -> None:
    """A picture in the colour of a class; lossless, whatever its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(k)).save(path, format="PNG")


def plant(folder: Path, classes: Sequence[int], names: Mapping[int, str] | None = None) -> None:
    """Class folders with a picture for each time that a class is named."""
    for i, k in enumerate(classes):
        paint(folder / (names or dict(enumerate(synsets())))[k] / f"{i}.JPEG", k)


def plant_objectnet(folder: Path) -> None:
    """Pictures with a red border of 2 pixels, then a ring in the colour of the class; the mapping
    files with the odd order and the doubled label ("crane") of the real ones."""
    for name, classes in OBJECTS.items():
        for k in classes or [0]:
            path = folder / "images" / name / f"{k}.png"
            paint(path, 300, (12, 12))
            with Image.open(path) as image:
                image.paste(RED, (0, 0, 12, 12))
                image.paste(colour(k), (2, 2, 10, 10))
                image.paste(colour(300), (3, 3, 9, 9))
                image.save(path)
    label = {k: "crane" if k in (134, 517) else f"thing {k}, object {k}" for k in range(1000)}
    line = {k: (7 * k + 3) % 1000 for k in range(1000)}
    at = {number: label[k] for k, number in line.items()}
    overlap = {f"The {n}": "; ".join(map(label.get, ks)) for n, ks in OBJECTS.items() if ks}
    (folder / "mappings").mkdir()
    for name, content in {
        "folder_to_objectnet_label.json": json.dumps({n: f"The {n}" for n in OBJECTS}),
        "objectnet_to_imagenet_1k.json": json.dumps(overlap),
        "pytorch_to_imagenet_2012_id.json": json.dumps({str(k): n for k, n in line.items()}),
        "imagenet_to_label_2012_v2": "".join(f"{at[n]}\n" for n in range(1000)),
    }.items():
        (folder / "mappings" / name).write_text(content)


def devkit_number(k: int) -> int:
    """The devkit's own number of a head class, here an odd one."""
    return (13 * k + 5) % 1000 + 1


@cache
def devkit_table() -> bytes:
    """A meta.mat of the 1000 classes and of inner nodes of the hierarchy."""
    rows = [(devkit_number(k), wnid, f"the {wnid}, thing", 0) for k, wnid in enumerate(synsets())]
    rows += [(1001 + k, f"n0000000{k}", "entity", 2) for k in range(3)]
    table = np.empty(
        (len(rows), 1),
        [(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    for i, (n, wnid, words, children) in enumerate(sorted(rows)):
        table[i, 0] = (float(n), wnid, words, "", float(children))
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def plant_devkit(folder: Path, classes: Sequence[int]) -> None:
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(devkit_table())
    truth = "".join(f"{devkit_number(k)}\n" for k in classes)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


VAL = (0, 1, 1, 6, 11, 998)
PLANTED = {
    "val": VAL,
    "v2": (0, 1, 2, 10, 11, 100),
    "r": (1, 6, 6, R[-1]),
    "sketch": (0, 500, 998),
    "a": (6, 11, A[-1]),
    "v2-threshold0.7": (9, 10),
    "v2-top-images": (2, 19),
}


def plant_one(root: Path, name: str) -> None:
    numbered = {k: str(k) for k in range(1000)}
    place = root / ORIGINS[name].places[0]
    if name == "objectnet":
        plant_objectnet(place)
    else:
        plant(place, PLANTED[name], numbered if name.startswith("v2") else None)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """All sets, a few pictures each. Tests only read them."""
    root = tmp_path_factory.mktemp("data")
    for name in ORIGINS:
        plant_one(root, name)
    return root


def find(root: Path | None, *names: str, class_names: Sequence[str] = NAMES, small: bool = True):
    return find_shifts(list(names), Request(root, class_names, allow_incomplete=small))


def score(shift: Shift, distraction: int | None = None) -> tuple[int, int]:
    """Right ones and all."""
    (row,) = evaluate({"m": Sees(distraction)}, [shift]).rows
    return row.correct, row.total


def refusal(root: Path | None, *names: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        find(root, *names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_class_lists_are_those_of_timm():
    import timm

    lists = Path(timm.__file__).parent / "data" / "_info"
    assert len(synsets()) == 1000
    assert list(synsets()) == sorted(set(synsets()))
    for name, classes in (("r", R), ("a", A)):
        wnids = (lists / f"imagenet_{name}_synsets.txt").read_text().split()
        assert [synsets()[k] for k in classes] == wnids
        assert len(set(classes)) == len(wnids) == 200


EXPECTED = {
    "val": 6,
    "v2": 6,
    "r": 4,
    "sketch": 3,
    "a": 3,
    "objectnet": 6,
    "val on R classes": 4,
    "val on A classes": 2,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_who_sees_the_class_is_right_on_every_set(everything, workers):
    wanted = ["imagenet", "imagenet/v2-threshold0.7", "imagenet/v2-top-images"]
    report = evaluate({"m": Sees()}, find(everything, *wanted), workers=workers)
    totals = {row.shift: row.total for row in report.rows if row.total}
    assert totals == {**EXPECTED, "v2-threshold0.7": 2, "v2-top-images": 2}
    assert all(row.value == 1 for row in report.rows)
    assert report.reference == "val"


def test_the_family_holds_the_published_sets_and_clean_images_of_their_classes(everything):
    found = find(everything, "imagenet")
    assert [shift.name for shift in found] == list(EXPECTED)
    clean = [shift.name for shift in found if shift.in_distribution]
    assert clean == ["val", "val on R classes", "val on A classes"]


@pytest.mark.parametrize("name", [*ORIGINS, "val on R classes", "val on A classes"])
def test_each_set_can_be_asked_for_alone(everything, name):
    (shift,) = find(everything, f"imagenet/{name}")
    assert shift.name == name
    correct, total = score(shift)
    assert correct == total > 0


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, o in ORIGINS.items() for place in o.places]
)
def test_every_folder_name_is_accepted(everything, tmp_path, name, place):
    shutil.copytree(everything / ORIGINS[name].places[0], tmp_path / place)
    (shift,) = find(tmp_path, f"imagenet/{name}")
    assert score(shift)[0] == shift.found.images


def test_v2_in_the_order_of_its_folder_names_is_scrambled(everything):
    (shift,) = find(everything, "imagenet/v2")
    place = everything / ORIGINS["v2"].places[0]
    assert score(replace(shift, load=lambda preprocess: Folder(place, preprocess))) == (2, 6)
    by_number = ["0", "1", "2", "10", "11", "100"]
    assert score(replace(shift, load=lambda p: Folder(place, p, by_number))) == (3, 6)
    assert score(shift) == (6, 6)


# A class that the set does not have; of the head's first and last there is always one.
@pytest.mark.parametrize(
    ("name", "distraction"), [("r", 0), ("a", 0), ("objectnet", 999), ("val on R classes", 0)]
)
def test_a_class_that_the_set_lacks_does_not_compete(everything, name, distraction):
    (shift,) = find(everything, f"imagenet/{name}")
    correct, total = score(shift, distraction)
    assert correct == total
    assert score(replace(shift, classes=None), distraction) == (0, total)


def test_a_class_that_the_set_has_competes(everything):
    (shift,) = find(everything, "imagenet/r")
    assert score(shift, distraction=R[-1]) == (1, 4)


def test_any_class_of_an_object_is_right_and_no_other(everything):
    (shift,) = find(everything, "imagenet/objectnet")
    assert shift.classes == (423, 444, 504, 559, 671, 765)
    assert shift.accepts == {0: (444, 671), 1: (423, 559, 765), 2: (504,)}
    # One of three chairs, one of two bicycles, the mug.
    one_to_one = {label: classes[:1] for label, classes in shift.accepts.items()}
    assert score(replace(shift, accepts=one_to_one)) == (3, 6)
    assert score(shift, distraction=765) == (3, 6)


# What cannot be read gets the first class of the set: the three chairs are right by accident.
@pytest.mark.parametrize(("border", "correct"), [(0, 3), (1, 3), (2, 6), (3, 3)])
def test_two_pixels_of_border_are_cropped_from_objects(everything, border, correct):
    (shift,) = find(everything, "imagenet/objectnet")

    def load(preprocess):
        return Pictures(shift.load(preprocess).samples, border, preprocess)

    assert score(replace(shift, load=load)) == (correct, 6)
    assert shift.load(Preprocess()).border == 2


def test_a_set_of_1000_classes_is_judged_among_all(everything):
    for name in ("val", "v2", "sketch"):
        (shift,) = find(everything, f"imagenet/{name}")
        assert shift.classes is None
        assert score(shift, distraction=700) == (0, EXPECTED[name])


def test_pictures_are_read_as_they_are_stored(tmp_path):
    picture = Image.new("RGBA", (SIDE, SIDE), (*colour(1), 255))
    picture.putpixel((0, 0), (*colour(6), 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    place = tmp_path / "imagenet-r" / synsets()[6]
    place.mkdir(parents=True)
    picture.save(place / "x.png", exif=turned)
    (place / "._x.png").write_bytes(b"what some archives have beside a file")
    (place / "notes.txt").write_text("no picture")
    assert score(find(tmp_path, "imagenet/r")[0]) == (1, 1)


def plant_flat(root: Path, numbers: Sequence[int]) -> None:
    for n in numbers:
        paint(root / "val" / f"ILSVRC2012_val_{n:08d}.JPEG", VAL[n - 1])


@pytest.mark.parametrize("beside", [".", "val"])
@pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5, 6), (2, 5, 6)])
def test_flat_val_takes_its_labels_from_the_devkit(tmp_path, beside, numbers):
    plant_flat(tmp_path, numbers)
    plant_devkit(tmp_path / beside, VAL)
    (val, on_r) = find(tmp_path, "imagenet/val", "imagenet/val on R classes")
    labels = [VAL[n - 1] for n in numbers]
    assert [label for _, label in val.load(Preprocess()).samples] == labels
    assert score(val) == (len(numbers), len(numbers))
    assert on_r.found == Size(len([k for k in labels if k in R]), len({*labels} & {*R}))
    assert "devkit" in val.note


def test_flat_val_takes_its_labels_from_what_torchvision_makes_of_the_devkit(tmp_path, monkeypatch):
    plant_flat(tmp_path, range(1, 7))
    plant_devkit(tmp_path / "unpacked", VAL)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "unpacked" / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    monkeypatch.setattr(reference, "_verify_archive", lambda *args: None)
    reference.parse_devkit_archive(tmp_path)
    assert reference.load_meta_file(tmp_path)[1] == [synsets()[k] for k in VAL]
    assert score(find(tmp_path, "imagenet/val")[0]) == (6, 6)


def test_flat_val_and_folders_are_the_same_set(everything, tmp_path):
    plant_flat(tmp_path, range(1, 7))
    plant_devkit(tmp_path, VAL)
    sets = [find(root, "imagenet/val")[0] for root in (everything, tmp_path)]
    assert len({tuple(label for _, label in s.load(Preprocess()).samples) for s in sets}) == 1


def test_flat_val_without_labels_is_refused(tmp_path):
    plant_flat(tmp_path, [1])
    assert "ILSVRC2012_devkit_t12" in refusal(tmp_path, "imagenet/val")
    plant_devkit(tmp_path, [])
    assert "00000001" in refusal(tmp_path, "imagenet/val")


@pytest.mark.parametrize("content", [b"", b"x y z", b"1001\n"])
@pytest.mark.parametrize("damaged", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_a_damaged_devkit_is_refused(tmp_path, damaged, content):
    plant_flat(tmp_path, [1])
    plant_devkit(tmp_path, VAL)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / damaged).write_bytes(content)
    assert len(refusal(tmp_path, "imagenet/val")) < 500


@pytest.mark.parametrize("content", [b"", b"x y z"])
def test_a_damaged_file_of_torchvision_is_refused(tmp_path, content):
    plant_flat(tmp_path, [1])
    (tmp_path / "meta.bin").write_bytes(content)
    assert "Cannot read the labels" in refusal(tmp_path, "imagenet/val")


def test_a_file_of_another_name_in_flat_val_is_refused(tmp_path):
    plant_flat(tmp_path, [1])
    plant_devkit(tmp_path, VAL)
    paint(tmp_path / "val" / "holiday.jpg", 0)
    assert "holiday.jpg" in refusal(tmp_path, "imagenet/val")


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


def test_the_family_is_what_is_there_and_the_protocol_names_the_rest(tmp_path):
    for name in ("v2", "r", "sketch", "a"):
        plant_one(tmp_path, name)
    report = evaluate({"m": Sees()}, find(tmp_path, "imagenet"))
    assert list(report.protocol["sets"]) == ["v2", "r", "sketch", "a"]
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
    sizes = {name: (o.expected.images, o.expected.classes) for name, o in ORIGINS.items()}
    assert sizes == {
        "val": (50_000, 1000),
        "v2": (10_000, 1000),
        "r": (30_000, 200),
        "sketch": (50_889, 1000),
        "a": (7500, 200),
        "objectnet": (18_574, 113),
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
    sets = protocol["sets"]
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
    assert report.protocol["means"]["mean of 5"] == list(MEANS["mean of 5"])
    assert report.protocol["means"]["mean of 4"] == ["v2", "r", "sketch", "a"]


def test_accepted_classes_are_what_a_plain_loop_finds():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (200, 6), generator=rng).float()
    accepts = {0: (1, 4), 1: (5,), 2: (), 7: (0, 1, 2, 3, 4, 5)}
    labels = torch.tensor(list(accepts))[torch.randint(4, (200,), generator=rng)]
    for classes in (None, (1, 4, 5), (0, 1, 2, 3, 4, 5)):
        expected = []
        for row, label in zip(logits.tolist(), labels.tolist()):
            best = max(classes or range(6), key=lambda k, row=row: (row[k], -k))
            expected.append(best in accepts[label])
        got = right(logits, labels, classes, accepts)
        assert got.dtype == torch.bool
        assert got.tolist() == expected


def test_labels_that_accept_nothing_known_are_refused():
    with pytest.raises(InputError, match="labels among the 2 classes of the set"):
        right(torch.zeros(2, 3), torch.tensor([0, 2]), None, {0: (0,), 1: (1,)})


def test_classes_that_the_head_lacks_are_refused():
    with pytest.raises(InputError, match="class 3"):
        right(torch.zeros(1, 3), torch.tensor([0]), (0, 3))


def test_two_families_with_a_set_of_the_same_name_are_refused(everything, monkeypatch):
    (shift,) = find(everything, "imagenet/r")
    monkeypatch.setitem(SHIFTS, "mine", lambda request: [shift])
    with pytest.raises(InputError, match="mine and imagenet both"):
        find(everything, "mine", "imagenet/r")
