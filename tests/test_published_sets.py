from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from support.imagenet_trees import SIDE, Sees, find, paint, plant_val, refusal, score
from torchvision.transforms import v2

from cfmask import InputError, digits, evaluate
from cfmask.images import Preprocess
from cfmask.shift import Size
from cfmask.shifts.attributes import FACTORS
from cfmask.shifts.backgrounds import IN9_CLASSES, IN9_KINDS
from cfmask.shifts.combinations import COMBINATIONS
from cfmask.shifts.inventory import check_sets
from cfmask.shifts.published import PUBLISHED
from cfmask.wordnet import real_labels, synsets


def test_every_published_family_can_be_asked_for():
    origins = [origin for family in PUBLISHED.values() for origin in family.values()]
    assert all(origin.source.startswith("https://") for origin in origins)
    assert all(origin.licence and origin.title for origin in origins)


def test_every_combination_is_of_known_sets():
    known = {f"{family}/{name}" for family, origins in PUBLISHED.items() for name in origins}
    known |= {f"{world}/{name}" for world, sets in digits.WORLDS.items() for name in sets}
    assert all(set(of.weights) <= known for of in COMBINATIONS.values())


def plant_counteranimal(home: Path) -> None:
    """The counter images of class 10 show class 11."""
    for folder, group, k in [
        ("10 brambling", "common-green", 10),
        ("10 brambling", "counter-sky", 11),
        ("102 echidna", "common-grass", 102),
        ("102 echidna", "counter-sand", 102),
    ]:
        paint(home / folder / group / "x.png", k)


@pytest.mark.parametrize("place", ["counteranimal/LAION-final", "LAION-final"])
def test_counteranimal_takes_its_labels_from_the_folders_numbers(tmp_path, place):
    plant_counteranimal(tmp_path / place)
    common, counter = find(tmp_path, "counteranimal")
    assert (common.name, counter.name) == ("counteranimal/common", "counteranimal/counter")
    assert score(common) == (2, 2)
    assert score(counter) == (1, 2)
    assert score(common, distraction=700) == (0, 2), "the argmax is taken among all classes"
    (alone,) = find(tmp_path, "counteranimal/counter")
    assert alone.name == counter.name
    assert alone.expected == Size(5926, 45)


def test_counteranimal_refuses_folders_without_a_number(tmp_path):
    plant_counteranimal(tmp_path / "LAION-final")
    paint(tmp_path / "LAION-final" / "cats" / "common-x" / "x.png", 0)
    assert "'cats'" in refusal(tmp_path, "counteranimal")


def plant_imagenet9(root: Path) -> None:
    """Each class twice, as two of its head classes; -1 for the other head classes."""
    number = {str(k): k // 20 if k < 180 else -1 for k in range(1000)}
    (root / "in_to_in9.json").write_text(json.dumps(number))
    for kind in IN9_KINDS:
        for k, name in enumerate(IN9_CLASSES):
            for head in (20 * k, 20 * k + 19):
                folder = root / "bg_challenge" / kind / "val" / name
                paint(folder / f"{synsets()[head]}_{head}.JPEG", head, (SIDE, SIDE))


def test_a_class_of_imagenet9_is_any_of_its_head_classes(tmp_path):
    plant_imagenet9(tmp_path)
    found = find(tmp_path, "imagenet-9")
    assert [shift.name for shift in found] == [f"imagenet-9/{kind}" for kind in IN9_KINDS]
    for shift in found:
        assert score(shift) == (18, 18)
        assert score(shift, distraction=20) == (2, 18)
        assert score(shift, distraction=999) == (0, 18), "a class of none of the nine is wrong"
    assert found[0].in_distribution


def test_imagenet9_is_read_as_stored_and_needs_the_authors_map(tmp_path):
    plant_imagenet9(tmp_path)
    (shift,) = find(tmp_path, "imagenet-9/mixed_rand")
    bigger = tmp_path / "bg_challenge" / "mixed_rand" / "val" / "00_dog" / "big.JPEG"
    paint(bigger, 0, (12, 12))
    (with_big,) = find(tmp_path, "imagenet-9/mixed_rand")
    with pytest.raises(ValueError, match="12 x 12"):
        score(with_big)
    assert score(shift) == (18, 18)
    file = tmp_path / "in_to_in9.json"
    for damaged in ("", "[1]", json.dumps({"0": 1})):
        file.write_text(damaged)
        assert "in_to_in9.json" in refusal(tmp_path, "imagenet-9")
    file.unlink()
    assert "MadryLab" in refusal(tmp_path, "imagenet-9")


def a_font() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def plant_watermark(root: Path, classes=(5, 7)) -> None:
    plant_val(root / "val", classes)
    (root / "imagenet-w").mkdir()
    font = root / "imagenet-w" / "SourceHanSerifSC-ExtraLight.otf"
    font.write_bytes(a_font().read_bytes())


@pytest.mark.parametrize(("side", "size"), [(224, 36), (384, 62), (256, 41)])
def test_the_watermark_is_written_on_the_cropped_image(tmp_path, side, size):
    plant_watermark(tmp_path)
    (shift,) = find(tmp_path, "imagenet-w/imagenet-w")
    preprocess = Preprocess((side, side))
    image, _ = shift.load(preprocess)[0]
    clean, _ = find(tmp_path, "imagenet/val")[0].load(preprocess)[0]
    # The same by PIL alone: white text at half opacity blended over the picture.
    mask = Image.new("L", (side, side))
    font = ImageFont.truetype(str(a_font()), size)
    ImageDraw.Draw(mask).text((0.01 * side, 0.4 * side), "捷径捷径捷径", fill=128, font=font)
    alpha = torch.tensor(np.array(mask)).double() / 255
    expected = clean.double() * (1 - alpha) + 255 * alpha
    assert (image.double() - expected).abs().max() <= 1.5
    assert (image != clean).any()
    assert torch.equal(image[:, : side // 4], clean[:, : side // 4])


def test_the_carton_gap_is_of_the_images_of_cartons(tmp_path):
    plant_watermark(tmp_path, (5, 478, 478))
    marked, clean = find(tmp_path, "imagenet-w/carton")
    assert (marked.name, clean.name) == ("imagenet-w/carton", "imagenet-w/carton-clean")
    assert [len(shift.load(Preprocess())) for shift in (marked, clean)] == [2, 2]
    assert (marked.load(Preprocess())[0][0] != clean.load(Preprocess())[0][0]).any()
    assert score(clean) == (2, 2)
    assert marked.in_distribution, "it is in no mean"
    assert COMBINATIONS["ImageNet-W carton gap"].weights == {marked.name: 1, clean.name: -1}


def test_the_watermark_comes_after_no_transform_of_ones_own(tmp_path):
    plant_watermark(tmp_path)
    look = v2.Compose([v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    with pytest.raises(InputError, match="wrap the module as ModuleClassifier"):
        evaluate(Sees().encoder, find(tmp_path, "imagenet-w/imagenet-w"), transform=look)


def test_the_watermark_needs_its_font(tmp_path):
    plant_val(tmp_path / "val", [5])
    said = refusal(tmp_path, "imagenet-w")
    assert "SourceHanSerifSC-ExtraLight.otf" in said
    assert "facebookresearch/Whac-A-Mole" in said
    (tmp_path / "SourceHanSerifSC-ExtraLight.otf").write_bytes(b"no font")
    assert "Cannot read the font" in refusal(tmp_path, "imagenet-w/imagenet-w")


def plant_imagenet_x(root: Path) -> None:
    """Four images of val: by pose, by colour, by nothing, and a prototype."""
    alone = [(n, k[0]) for n, k in enumerate(real_labels(), 1) if len(k) == 1][:4]
    rows = []
    for (number, k), factor in zip(alone, ("pose", "color", "", "")):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        paint(root / "val" / synsets()[k] / name, k)
        marks = {f: int(f == factor) for f in FACTORS}
        rows.append({"file_name": name, "class": k, **marks, "one_word": "x"})
    home = root / "imagenet-x"
    home.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (home / "imagenet_x_val_top_factor.jsonl").write_text(lines)
    (home / "prototypical_paths.csv").write_text(f"file_name\n{rows[3]['file_name']}\n")


def test_imagenet_x_is_grouped_by_the_top_factor_without_prototypes(tmp_path):
    plant_imagenet_x(tmp_path)
    (shift,) = find(tmp_path, "imagenet-x")
    assert score(shift) == (3, 3)
    assert [shift.group_names[g] for g in shift.groups] == ["pose", "color", "no factor"]
    (tmp_path / "imagenet-x" / "imagenet_x_val_top_factor.jsonl").write_text("{}\n")
    assert "Cannot read the annotations" in refusal(tmp_path, "imagenet-x")
    (tmp_path / "imagenet-x" / "prototypical_paths.csv").unlink()
    assert "prototypical_paths.csv" in refusal(tmp_path, "imagenet-x")


def plant_imagenet_e(home: Path) -> None:
    """Two originals; the first is lost in a smaller size, the second in a rotation."""
    shown = {"ori": (3, 44), "size_0.1": (9, 44), "rotation": (3, 9), "full": (3, 44)}
    for kind, classes in shown.items():
        ending = "JPEG" if kind in ("ori", "full") else "png"
        for i, k in enumerate(classes):
            paint(home / kind / f"ILSVRC2012_val_0000000{i}.{ending}", k)
    lines = [f"ILSVRC2012_val_0000000{i}.JPEG\t{k}" for i, k in enumerate((3, 44))]
    (home / "labels.txt").write_text("\n".join(lines))


def test_imagenet_e_is_labelled_by_its_list_and_grouped_by_edit(tmp_path):
    plant_imagenet_e(tmp_path / "ImageNet-E")
    original, edited = find(tmp_path, "imagenet-e")
    assert score(original) == (2, 2)
    assert score(edited) == (4, 6)
    assert [edited.group_names[g] for g in edited.groups] == [
        kind for kind in ("full", "rotation", "size_0.1") for _ in range(2)
    ]
    paint(tmp_path / "ImageNet-E" / "rotation" / "another.png", 0)
    assert "another.png" in refusal(tmp_path, "imagenet-e/edited")
    (tmp_path / "ImageNet-E" / "labels.txt").write_text("x y z")
    assert "labels.txt" in refusal(tmp_path, "imagenet-e")


def plant_dollar_street(home: Path) -> None:
    header = "id,country.name,region.id,income,imageRelPath,imagenet_synonyms,imagenet_sysnet_id"
    lines = [header]
    for i, (income, shown, classes) in enumerate(
        [(50, 5, [5]), (200, 7, [6, 7]), (684.5, 6, [7, 6]), (5000, 9, [5, 10]), (1997, 5, [5])]
    ):
        paint(home / "assets" / f"{i}.jpg", shown)
        region = "eu" if i == 3 else "af"
        lines.append(f'{i},Chad,{region},{income},assets/{i}.jpg,"[""a""]","{classes}"')
    (home / "images_v2_imagenet_test.csv").write_text("\n".join(lines))


def test_dollar_street_is_right_by_any_class_and_grouped_by_income(tmp_path):
    plant_dollar_street(tmp_path / "dollarstreet" / "dataset_dollarstreet")
    (shift,) = find(tmp_path, "dollarstreet")
    assert score(shift) == (4, 5)
    assert shift.groups == (0, 0, 2, 3, 2)
    assert shift.group_names[0] == "income to 200"
    assert shift.expected.images == 4308
    one_each = {label: classes[:1] for label, classes in shift.accepts.items()}
    assert score(replace(shift, accepts=one_each)) == (2, 5)


def test_dollar_street_by_region_tells_the_disparity_of_the_regions(tmp_path):
    home = tmp_path / "dollarstreet" / "dataset_dollarstreet"
    plant_dollar_street(home)
    (shift,) = find(tmp_path, "dollarstreet/regions")
    assert (shift.groups, shift.group_names) == ((0, 0, 0, 1, 0), ("af", "eu"))
    # The one image of eu is painted as a class that is not among its own.
    report = evaluate({"m": Sees()}, [shift])
    (row,) = report.of("disparity")
    assert (row.value, row.note) == (1, "af − eu")
    list_ = home / "images_v2_imagenet_test.csv"
    list_.write_text(list_.read_text().replace(",eu,", ",,"))
    assert "has no group" in refusal(tmp_path, "dollarstreet/regions")
    list_.write_text(list_.read_text().replace("region.id", "region"))
    assert "region.id" in refusal(tmp_path, "dollarstreet/regions")
    find(tmp_path, "dollarstreet")


def test_dollar_street_names_what_is_missing(tmp_path):
    home = tmp_path / "dollarstreet" / "dataset_dollarstreet"
    plant_dollar_street(home)
    assert "4308 images" in refusal(tmp_path, "dollarstreet", small=False)
    (home / "assets" / "3.jpg").unlink()
    assert "assets/3.jpg" in refusal(tmp_path, "dollarstreet")
    (home / "images_v2_imagenet_test.csv").write_text("id,income\n1,2\n")
    assert "Cannot read" in refusal(tmp_path, "dollarstreet")


def test_all_sets_are_checked_at_once(tmp_path):
    plant_counteranimal(tmp_path / "LAION-final")
    plant_imagenet9(tmp_path)
    plant_imagenet_e(tmp_path / "ImageNet-E")
    plant_dollar_street(tmp_path / "dollarstreet")
    checks = {check.name: check for check in check_sets(tmp_path)}
    assert checks["imagenet-9/mixed_same"].found == Size(18, 9)
    assert checks["imagenet-9/mixed_same"].problems == ()
    assert checks["dollarstreet"].found == Size(5, 4)
    assert checks["counteranimal/common"].found == Size(2, 2)
    assert checks["imagenet-e/edited"].found == Size(6, 2)
    assert checks["imagenet-c"].path is None


def test_gaps_are_the_difference_of_two_sets(tmp_path):
    plant_counteranimal(tmp_path / "LAION-final")
    plant_imagenet_e(tmp_path / "ImageNet-E")
    report = evaluate({"m": Sees()}, find(tmp_path, "counteranimal", "imagenet-e"))
    for name in ("CounterAnimal drop", "ImageNet-E drop"):
        of = COMBINATIONS[name]
        assert sum(of.weights.values()) == 0
        assert report.value("m", name) == pytest.approx(
            sum(weight * report.value("m", s) for s, weight in of.weights.items())
        )
    assert report.value("m", "CounterAnimal drop") == pytest.approx(1 / 2)
    assert report.value("m", "ImageNet-E drop") == pytest.approx(1 / 3)
