from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.imagenet_trees import (
    ORIGINS,
    SIDE,
    VAL,
    A,
    R,
    Sees,
    colour,
    find,
    paint,
    plant_devkit,
    refusal,
    score,
)
from torchvision.datasets import imagenet as reference

from cfmask import evaluate
from cfmask.data.folders import Folder, Pictures
from cfmask.images import Preprocess
from cfmask.shift import Size
from cfmask.shifts import imagenet_val
from cfmask.shifts.imagenet import IMAGENET
from cfmask.wordnet import real_labels, synsets


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
    totals = {row.shift: row.total for row in report.of("accuracy") if row.total}
    expected = {**EXPECTED, "v2-threshold0.7": 2, "v2-top-images": 2}
    assert totals == {f"imagenet/{name}": count for name, count in expected.items()}
    assert all(row.value == pytest.approx(1) for row in report.of("accuracy"))
    assert report.reference == "imagenet/val"


def test_the_family_holds_the_published_sets_and_clean_images_of_their_classes(everything):
    found = find(everything, "imagenet")
    assert [shift.name for shift in found] == [f"imagenet/{name}" for name in EXPECTED]
    clean = [shift.name.partition("/")[2] for shift in found if shift.in_distribution]
    assert clean == ["val", "val on R classes", "val on A classes"]


@pytest.mark.parametrize("name", IMAGENET)
def test_each_set_can_be_asked_for_alone(everything, name):
    (shift,) = find(everything, f"imagenet/{name}")
    assert shift.name == f"imagenet/{name}"
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
        return Pictures(shift.load(preprocess).samples, preprocess, border)

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


@pytest.mark.parametrize("place", ["scipy.io.loadmat", "torch.load"])
def test_a_lack_of_memory_is_no_damaged_devkit(tmp_path, monkeypatch, place):
    plant_flat(tmp_path, [1])
    plant_devkit(tmp_path, VAL)
    if place == "torch.load":
        shutil.rmtree(tmp_path / "ILSVRC2012_devkit_t12")
        torch.save(({}, [synsets()[k] for k in VAL]), tmp_path / "meta.bin")

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(place, fail)
    with pytest.raises(MemoryError):
        find(tmp_path, "imagenet/val")


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


def plant_real(folder: Path) -> None:
    """Val in one class folder: painted in its first ReaL class, in its last, or without one."""
    real = real_labels()
    single = next(n for n, seen in enumerate(real) if len(seen) == 1)
    several = [n for n, seen in enumerate(real) if len(seen) > 1][:2]
    none = next(n for n, seen in enumerate(real) if not seen)
    for n, k in [
        (single, real[single][0]),
        (several[0], real[several[0]][0]),
        (several[1], real[several[1]][-1]),
        (none, 0),
    ]:
        paint(folder / synsets()[7] / f"ILSVRC2012_val_{n + 1:08d}.JPEG", k)


def test_any_real_label_is_right_and_images_without_one_are_left_out(tmp_path):
    plant_real(tmp_path / "val")
    (shift,) = find(tmp_path, "imagenet/real")
    assert shift.in_distribution
    assert score(shift) == (3, 3)
    first = {label: classes[:1] for label, classes in shift.accepts.items()}
    assert score(replace(shift, accepts=first)) == (2, 3)
    assert score(find(tmp_path, "imagenet/val")[0]) == (0, 4)
    assert "1 of 3 images have a single label" in shift.note
    single = [len(shift.accepts[k]) == 1 for _, k in shift.load(Preprocess()).samples]
    assert [shift.group_names[g] == "1 label" for g in shift.groups] == single


def test_real_labels_cover_the_published_number_of_images(tmp_path, monkeypatch):
    (tmp_path / "val").mkdir()
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    monkeypatch.setattr(imagenet_val, "all_pictures", lambda folder: names)
    (shift,) = find(tmp_path, "imagenet/real", small=False)
    assert shift.found == shift.expected == Size(46_837, 1000)
    # What the published lists say of some of them.
    for path, label in shift.load(Preprocess()).samples[::997]:
        assert shift.accepts[label] == real_labels()[int(Path(path).stem[-8:]) - 1]
    counts = [len(classes) for classes in real_labels() if classes]
    groups = [shift.groups.count(k) for k in range(3)]
    assert groups == [counts.count(1), counts.count(2), sum(n > 2 for n in counts)]


def test_real_labels_need_the_original_file_names(tmp_path):
    paint(tmp_path / "val" / synsets()[0] / "1.JPEG", 0)
    assert "ILSVRC2012_val_00000001.JPEG" in refusal(tmp_path, "imagenet/real")
