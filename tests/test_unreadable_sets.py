"""Sets of which some images cannot be read, and data sets of any kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluation import models
from support.imagenet_trees import Sees as SeesTheColour
from support.imagenet_trees import find

from cfmask import InputError, ShiftReport, UnreadableImage, evaluate
from cfmask.data.folders import Pictures
from cfmask.shift import Shift


def test_another_file_of_the_same_name_is_another_image(everything, tmp_path):
    import shutil

    shutil.copytree(everything / "imagenet-r", tmp_path / "imagenet-r")
    model = {"m": SeesTheColour()}
    shifts = find(tmp_path, "imagenet/r")
    evaluate(model, shifts, store=tmp_path / "answers")
    assert evaluate(model, shifts, store=tmp_path / "answers").run["reused"] == ["imagenet/r"]
    path = next((tmp_path / "imagenet-r").rglob("*.JPEG"))
    path.touch()
    assert not evaluate(model, shifts, store=tmp_path / "answers").run["reused"]


def plant_broken(root: Path, everything: Path) -> tuple[Shift, Path]:
    import shutil

    shutil.copytree(everything / "imagenet-r", root / "imagenet-r")
    broken = sorted((root / "imagenet-r").rglob("*.JPEG"))[2]
    broken.write_bytes(b"no picture")
    (shift,) = find(root, "imagenet/r")
    return shift, broken


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops_the_evaluation(everything, tmp_path, workers):
    shift, broken = plant_broken(tmp_path, everything)
    with pytest.raises(InputError, match=re.escape(str(broken))):
        evaluate({"m": SeesTheColour()}, [shift], workers=workers)


def test_an_image_that_cannot_be_read_counts_as_wrong_and_is_named(everything, tmp_path):
    shift, broken = plant_broken(tmp_path, everything)
    report = evaluate({"m": SeesTheColour()}, [shift], 2, unreadable="wrong")
    row = report.row("m", "imagenet/r")
    assert (row.correct, row.total) == (row.total - 1, shift.found.images)
    assert report.row("m", "imagenet/r", "top5").correct <= row.total - 1
    assert report.protocol["sets"]["imagenet/r"]["unreadable"] == [str(broken)]
    assert report.incomplete == ["imagenet/r"]


def test_labels_of_unreadable_images_are_those_of_the_set(everything):
    from cfmask.images import Preprocess
    from cfmask.inference.readable import Readable

    (shift,) = find(everything, "imagenet/objectnet")
    data = shift.load(Preprocess((8, 8)))
    assert isinstance(data, Pictures)
    readable = Readable(data, Preprocess((8, 8)), "wrong")
    assert [readable.label(i) for i in range(len(data))] == [data[i][1] for i in range(len(data))]
    assert readable.paths() == [path for path, _ in data.samples]


class OfMyOwn(torch.utils.data.Dataset):
    """A user's data set of 4 images that has nothing but its items; one raises an error."""

    def __init__(self, error: BaseException | None = None, **more: Any) -> None:
        self.error = error
        vars(self).update(more)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        if index == 2 and self.error:
            raise self.error
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index


def answers_to(data: OfMyOwn, tmp_path: Path, unreadable: str = "wrong") -> ShiftReport:
    shift = Shift("x", lambda look: data)
    return evaluate({"m": models()["good"]}, [shift], unreadable=unreadable, store=tmp_path / "a")


BROKEN = UnreadableImage("Cannot read image 2.")


@pytest.mark.parametrize("unreadable", ["stop", "wrong"])
@pytest.mark.parametrize("more", [{}, {"samples": ["0.png"] * 4}, {"samples": 4}, {"labels": "ab"}])
def test_a_data_set_with_nothing_but_items_is_evaluated(tmp_path, unreadable, more):
    for reused in ([], ["x"]):
        report = answers_to(OfMyOwn(**more), tmp_path, unreadable)
        assert report.value("m", "x") == 1
        assert report.run["reused"] == reused


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "OfMyOwn to tell the label of image 2"),
        ({"samples": ["0.png"] * 4}, "OfMyOwn to tell the label of image 2"),
        ({"labels": ["ant", "bee", "cat", "dog"]}, r"labels\[2\] of OfMyOwn .* 'cat'"),
    ],
)
def test_a_label_that_nobody_tells_is_asked_for_in_one_line(tmp_path, more, said):
    with pytest.raises(InputError, match=said) as caught:
        answers_to(OfMyOwn(BROKEN, **more), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        {"labels": [0, 1, 2, 3]},
        {"targets": torch.arange(4)},
        {"samples": [(f"{k}.png", k) for k in range(4)]},
    ],
)
def test_the_label_of_a_broken_image_comes_from_where_the_data_set_has_it(tmp_path, more):
    report = answers_to(OfMyOwn(BROKEN, **more), tmp_path)
    assert report.row("m", "x").correct == 3
    assert len(report.protocol["sets"]["x"]["unreadable"]) == 1


@pytest.mark.parametrize(
    "error", [MemoryError("full"), ValueError("a bug"), InputError("no image of ours"), KeyError(1)]
)
def test_no_other_error_is_an_unreadable_image(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        answers_to(OfMyOwn(error, labels=[0, 1, 2, 3]), tmp_path)
    assert caught.value is error
