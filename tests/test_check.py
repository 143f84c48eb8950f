from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from support.imagenet_trees import ORIGINS, VAL, paint, plant_devkit, plant_one

from cfmask import InputError
from cfmask.commands.eval_models import evaluate_run
from cfmask.shift import Size
from cfmask.shifts import inventory as check
from cfmask.shifts.inventory import check_sets, check_table
from cfmask.shifts.published import PUBLISHED
from cfmask.wordnet import real_labels, synsets


def one(root: Path, name: str, **options) -> check.SetCheck:
    (result,) = check_sets(root, [f"imagenet/{name}"], **options)
    return result


@pytest.fixture
def small(monkeypatch) -> None:
    """The sets are expected in the size in which the made-up trees have them."""
    sizes = {"val": (6, 5), "r": (4, 3), "objectnet": (6, 3)}
    for name, size in sizes.items():
        origin = PUBLISHED["imagenet"][name]
        monkeypatch.setitem(
            PUBLISHED["imagenet"], name, replace(origin, expected=Size(*size), each=0)
        )


def test_every_set_with_files_of_its_own_is_listed_with_what_was_looked_for(tmp_path):
    checks = check_sets(tmp_path, ["imagenet"])
    assert [c.name for c in checks] == [f"imagenet/{name}" for name in ORIGINS]
    assert all(c.path is None and c.places and c.source and not c.ok for c in checks)


def test_what_is_there_is_counted(everything):
    found = {c.name: (c.found, c.expected) for c in check_sets(everything, ["imagenet"])}
    assert found["imagenet/val"] == (Size(6, 5), Size(50_000, 1000))
    assert found["imagenet/v2"] == (Size(6, 6), Size(10_000, 1000))
    assert found["imagenet/objectnet"] == (Size(6, 3), Size(18_574, 113))


def test_a_whole_set_has_nothing_wrong(everything, small):
    # The class list of R is the published one, so only its many absent classes are wrong here.
    result = one(everything, "objectnet", decode=True)
    assert result.ok
    assert (result.problems, result.unreadable) == ((), ())


def test_missing_and_surplus_images_are_counted_and_classes_named(everything):
    problems = one(everything, "v2").problems
    assert problems[0] == "images missing: 9994"
    assert "994 (3, 4, 5, …)" in problems[1]
    assert "0 has 1, 1 has 1, 2 has 1" in problems[2]


def test_a_surplus_is_told_from_a_gap(tmp_path, small):
    plant_one(tmp_path, "objectnet")
    paint(tmp_path / "objectnet-1.0" / "images" / "mug" / "more.png", 504)
    assert one(tmp_path, "objectnet").problems == ("images too many: 1",)


def test_folders_of_other_classes_are_named_and_the_rest_is_counted(tmp_path):
    plant_one(tmp_path, "r")
    paint(tmp_path / "imagenet-r" / "n00000001" / "x.png", 0)
    result = one(tmp_path, "r")
    assert result.found == Size(4, 3)
    assert "n00000001" in result.problems[0]


def test_a_file_named_after_another_class_than_its_folder_is_found(tmp_path):
    plant_one(tmp_path, "sketch")
    home, other = synsets()[500], synsets()[7]
    for name in (f"{home}_1.JPEG", f"{other}_2.JPEG", "sketch_3.JPEG"):
        paint(tmp_path / "imagenet-sketch" / "sketch" / home / name, 500)
    (line,) = [p for p in one(tmp_path, "sketch").problems if "another class" in p]
    assert f"{other}_2.JPEG" in line
    assert ": 1 (" in line


def plant_numbered(root: Path, shift: int) -> None:
    """Twenty images of val whose ReaL label is one class, in the folder `shift` classes on."""
    alone = [(n, k[0]) for n, k in enumerate(real_labels(), 1) if len(k) == 1][:20]
    for number, k in alone:
        folder = synsets()[(k + shift) % 1000]
        paint(root / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", k)


@pytest.mark.parametrize(("shift", "right"), [(0, []), (1, ["0 of 20"])])
def test_folders_filled_in_another_order_are_found_by_the_real_labels(tmp_path, shift, right):
    plant_numbered(tmp_path, shift)
    problems = " ".join(one(tmp_path, "val").problems)
    assert re.findall(r"mis-sorted: only (\d+ of \d+) images", problems) == right


def test_a_single_image_in_a_wrong_folder_is_found_by_the_devkit(tmp_path):
    for number, k in enumerate(VAL, 1):
        folder = synsets()[k if number != 3 else 999]
        paint(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", k)
    plant_devkit(tmp_path, VAL)
    (line,) = [p for p in one(tmp_path, "val").problems if "by the devkit" in p]
    assert "00000003" in line
    assert ": 1 (" in line


def break_pictures(folder: Path) -> set[str]:
    """An empty file, one that is no picture, and one cut in the middle."""
    whole = folder / "whole.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    contents = {"empty.jpg": b"", "text.jpg": b"no picture", "cut.jpg": whole.read_bytes()[:900]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {str(folder / name) for name in contents}


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_names_exactly_the_broken_images(tmp_path, workers):
    plant_one(tmp_path, "r")
    broken = break_pictures(tmp_path / "imagenet-r" / synsets()[1])
    assert one(tmp_path, "r").unreadable == ()
    assert set(one(tmp_path, "r", decode=True, workers=workers).unreadable) == broken
    (line,) = [p for p in one(tmp_path, "r").problems if "empty files" in p]
    assert "empty.jpg" in line


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    plant_one(tmp_path, "r")
    (tmp_path / "imagenet-r" / synsets()[1] / "x.jpg").symlink_to("nowhere")
    (line,) = [p for p in one(tmp_path, "r").problems if "cannot be opened" in p]
    assert "x.jpg" in line


def test_workers_are_not_negative(tmp_path):
    with pytest.raises(InputError, match="at least 0 workers, but got -1"):
        check_sets(tmp_path, workers=-1)


def test_a_set_that_cannot_be_listed_says_why(tmp_path):
    plant_one(tmp_path, "objectnet")
    shutil.rmtree(tmp_path / "objectnet-1.0" / "mappings")
    result = one(tmp_path, "objectnet", decode=True)
    assert result.found is None
    assert "folder_to_objectnet_label.json" in result.problems[0]


def test_an_unknown_name_or_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="imagenet/sketch"):
        check_sets(tmp_path, ["imagenet/sketsh"])
    with pytest.raises(InputError, match="data_root"):
        check_sets(tmp_path / "nowhere")


def test_the_table_holds_every_check(everything):
    console = Console(width=400, file=io.StringIO())
    console.print(check_table(check_sets(everything, ["imagenet"])))
    text = console.file.getvalue()
    for name, origin in ORIGINS.items():
        (line,) = [row for row in text.splitlines() if f" imagenet/{name} " in row]
        assert f"/ {origin.expected.images}" in line
        assert str(everything / origin.places[0]) in line


def test_what_is_not_there_is_told_with_its_places_and_source(tmp_path):
    lines = check.absent_lines(check_sets(tmp_path))
    families = [line.split(":")[0] for line in lines]
    assert families[-5:] == [
        "imagenet-c",
        "counteranimal",
        "imagenet-9",
        "imagenet-e",
        "dollarstreet",
    ]
    (sketch,) = [line for line in lines if line.startswith("imagenet/sketch:")]
    assert all(place in sketch for place in ORIGINS["sketch"].places)
    assert ORIGINS["sketch"].source in sketch
    assert all("https://" in line for line in lines)


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        (["imagenet/real"], ["imagenet/real"]),
        (["imagenet-w/imagenet-w"], ["imagenet-w"]),
        (["imagenet/r", "imagenet/r"], ["imagenet/r"]),
        (["imagenet/v2"], ["imagenet/v2"]),
    ],
)
def test_a_set_made_of_val_is_checked_if_it_is_asked_for(everything, asked, listed):
    assert [c.name for c in check_sets(everything, asked)] == listed


def command(*args: str) -> int:
    try:
        evaluate_run(["--check", *args])
    except SystemExit as end:
        return int(end.code)
    return 0


def test_the_command_lists_sets_and_exits_by_what_it_finds(tmp_path, small, capsys):
    root = ["--data_root", str(tmp_path)]
    assert command(*root) == 0
    assert "0 of " in capsys.readouterr().out
    plant_one(tmp_path, "objectnet")
    assert command(*root, "--verify") == 0
    assert "1 of them with nothing wrong" in capsys.readouterr().out
    broken = break_pictures(tmp_path / "objectnet-1.0" / "images" / "mug")
    for shifts in ('["imagenet/objectnet"]', "imagenet/objectnet"):
        assert command(*root, "--verify", "--shifts", shifts) == 1
        said = capsys.readouterr().out
        assert all(f"cannot decode {path}\n" in said for path in broken)
        assert "1 of 1 sets are there" in said


def test_the_command_refuses_bad_input_in_one_line(tmp_path, capsys):
    for args in (["--data_root", str(tmp_path / "no")], ["--data_root", str(tmp_path), "--verifi"]):
        assert command(*args) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
