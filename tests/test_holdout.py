"""Folders without train/: what is a class, what is a test set, and what is held out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import picture, plant

from cfmask import FolderData, InputError, Request, ShiftReport, find_shifts
from cfmask.checkpoint import PRETRAINED
from cfmask.commands.main import main
from cfmask.data.holdout import undivided
from cfmask.images import Preprocess
from cfmask.runs.marker import held_out, mark

COUNTS = {"ant": 10, "bee": 20, "cat": 15}
LOOK = Preprocess((8, 8))


@pytest.fixture
def root(tmp_path) -> Path:
    """Class folders, and a set of drawings beside them."""
    plant(tmp_path / "photos", COUNTS)
    plant(tmp_path / "photos" / "sketches", dict.fromkeys(COUNTS, 2))
    return tmp_path / "photos"


def more(root: Path) -> None:
    """Further photographs in a class."""
    for i in range(30):
        picture("ant").save(root / "ant" / f"more{i}.png")


def sets_of(root: Path, **options) -> dict[str, list[str]]:
    """Files of every evaluation set, below the folder."""
    found = find_shifts(["folders"], Request(root, sorted(COUNTS), **options))
    return {
        shift.name: [os.path.relpath(path, root) for path, _ in shift.load(LOOK).samples]
        for shift in found
    }


def files_of(part) -> list[str]:
    """Files of a part of the training images, below the folder."""
    index = part.dataset.index
    return [os.fsdecode(index.files[k]) for k in part.indices]


def test_no_test_image_is_trained_on_and_every_class_gives_its_share(root):
    data = FolderData(str(root), workers=0)
    data.prepare(LOOK)
    parts = [files_of(data.train_set), files_of(data.val_set), list(data.held_out)]
    every = sorted(os.path.relpath(path, root) for path in root.glob("[abc]*/*.png"))
    assert sorted([*parts[0], *parts[1], *parts[2]]) == every
    assert len(every) == sum(COUNTS.values())
    for name, count in COUNTS.items():
        assert sum(path.startswith(name) for path in data.held_out) == count * 0.2
    assert data.class_names == ("ant", "bee", "cat")
    sets = sets_of(root)
    assert list(sets) == ["folders/id", "folders/sketches"]
    assert sets["folders/id"] == list(data.held_out)
    assert "9 are held out as the test set id" in data.reading
    names = [data.class_names[label] for _, label in data.train_set]
    assert names == [path.split("/")[0] for path in parts[0]]


def test_the_seed_of_a_run_moves_validation_alone(root):
    one, other = (FolderData(str(root), workers=0, seed=seed) for seed in (0, 1))
    for data in (one, other):
        data.prepare(LOOK)
    assert one.held_out == other.held_out
    assert files_of(one.val_set) != files_of(other.val_set)


def test_the_share_is_asked_for(root):
    assert len(sets_of(root, holdout=0.4)["folders/id"]) == 18
    data = FolderData(str(root), workers=0, holdout=0.4)
    data.prepare(LOOK)
    assert len(data.held_out) == 18
    with pytest.raises(InputError, match="above 0 and below 1, but got"):
        FolderData(str(root), workers=0, holdout=1.5).prepare(LOOK)


def test_what_a_run_held_out_stays_its_test_set(root):
    first = sets_of(root)["folders/id"]
    # More photographs, which would be drawn as well.
    more(root)
    known = {"held_out": tuple(first)}
    assert sets_of(root)["folders/id"] != first
    assert sets_of(root, **known)["folders/id"] == first
    (root / first[0]).unlink()
    with pytest.raises(InputError, match="1 are gone, such as"):
        sets_of(root, **known)
    # Of another folder a run knows nothing.
    elsewhere = {"held_out": ("ant/other.png",)}
    assert sets_of(root, **elsewhere) == sets_of(root)


def test_a_list_from_elsewhere_names_no_file_outside_of_the_folder(root, tmp_path):
    plant(tmp_path / "private", {"ant": 1})
    own = sets_of(root)["folders/id"]
    with pytest.raises(InputError, match="1 are gone"):
        sets_of(root, held_out=("../private/ant/0.png", *own))


def _other(root: Path, name: str, *inner: str) -> None:
    (root / name).joinpath(*inner).mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: _other(root, "raw"), "but raw does neither"),
        (lambda root: _other(root, "raw", "2019"), "but raw does neither"),
        (lambda root: plant(root, {"test": 2}), "test stands for a part"),
        (lambda root: plant(root / "id", {"ant": 2}), "id stands for a part"),
        (lambda root: plant(root / "old", {"ant": 2, "dog": 2}), "but old does neither"),
    ],
)
def test_other_folders_are_not_taken_for_classes(spoil, said, root):
    spoil(root)
    with pytest.raises(InputError, match=said):
        undivided(root)


def test_a_folder_that_is_divided_is_left_alone(root):
    plant(root / "train", {"ant": 2, "bee": 2})
    assert undivided(root) is None


def test_a_share_of_a_folder_that_is_divided_is_refused(root, capsys):
    plant(root / "train", {"ant": 2, "bee": 2})
    with pytest.raises(SystemExit):
        main(["train", str(root), "--holdout=0.3"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "leave --holdout out" in line


def test_groups_lists_and_hidden_folders_beside_classes(root):
    plant(root / "places" / "north", {"ant": 2})
    plant(root / "places" / "south", {"bee": 2})
    plant(root / ".cache", {"x": 2})
    (root / "listed").mkdir()
    (root / "listed" / "metadata.csv").write_text("path,label\n")
    found = undivided(root)
    assert found.classes == ("ant", "bee", "cat")
    assert found.sets == ("listed", "places", "sketches")


def test_a_run_notes_what_it_held_out(root, tmp_path):
    data = FolderData(str(root), workers=0)
    data.prepare(LOOK)
    (tmp_path / PRETRAINED).touch()
    mark(tmp_path, data.identity())
    assert held_out(tmp_path) == list(data.held_out)
    (tmp_path / "cfmask.json").write_text('{"images": {"held out": [1]}}')
    with pytest.raises(InputError, match="is damaged"):
        held_out(tmp_path)


@pytest.mark.slow
def test_a_run_is_tested_on_what_it_held_out(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", "timm:test_vit/random", "--method", "FineTuning", "--epochs", "1"]
    words += ["--workers", "0", "--batch-size", "16", "--holdout", "0.4", "--wise", "1"]
    words += ["--evaluation.pictures", "0"]
    main(["train", "photos", *words])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "18 are held out as the test set id, as photos has no train/" in out
    assert "id (ID)" in out
    first = held_out(Path("runs/photos"))
    assert first == sets_of(root, holdout=0.4)["folders/id"]
    more(root)
    main(["eval", "runs/photos"])
    assert "id (ID)" in capsys.readouterr().out
    report = ShiftReport.load("runs/photos/report.json")
    assert {row.total for row in report.of("accuracy") if row.shift == "folders/id"} == {18}


@pytest.mark.slow
def test_two_processes_hold_out_what_one_does(root, tmp_path):
    words = ["train", "photos", "--model", "timm:test_vit/random", "--method", "FineTuning"]
    words += ["--epochs", "1", "--workers", "0", "--batch-size", "4", "--holdout", "0.4"]
    words += ["--evaluation.pictures", "0", "--trainer.accelerator", "cpu"]
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "cfmask", *words, "--devices", devices]
        command += ["--run", f"run{devices}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (held_out(tmp_path / f"run{k}") for k in "12")
    assert one == two and len(one) == 18
    rows = ShiftReport.load(tmp_path / "run2" / "report.json").of("accuracy")
    assert {row.total for row in rows if row.shift == "folders/id"} == {18}
