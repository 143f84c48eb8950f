"""Several processes, interrupted evaluations, predictions, unreadable images, the progress bar."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.evaluation import (
    CLASSES,
    SIZES,
    ReadsTheLabel,
    Sees,
    in_processes,
    linear,
    models,
    odd_sets,
    painted,
    random_images,
    without_run,
)
from support.imagenet_trees import Sees as SeesTheColour
from support.imagenet_trees import find

from cfmask import InputError, ShiftReport, evaluate
from cfmask import processes as own_processes
from cfmask.inference.inference import Inference
from cfmask.inference.wise import Blend, WeightLine
from cfmask.shift import Shift


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_gives_the_same_report(tmp_path, count):
    def make(path: Path) -> None:
        evaluate(models(), odd_sets(), 7).save(path)

    expected = evaluate(models(), odd_sets(), 7)
    totals = {row.shift: row.total for row in expected.of("accuracy") if row.total}
    assert totals == SIZES
    in_processes(count, tmp_path / "out", make)
    for rank in range(count):
        report = ShiftReport.load(tmp_path / "out" / f"{rank}.json")
        assert without_run(report) == without_run(expected)
        assert report.run["processes"] == count
        assert report.run["images"] == sum(SIZES.values())


@pytest.mark.parametrize("count", [2, 3])
def test_who_sees_the_class_is_right_on_every_set_in_any_number_of_processes(
    everything, tmp_path, count
):
    shifts = find(everything, "imagenet")

    def make(path: Path) -> None:
        evaluate({"m": SeesTheColour()}, shifts, 2, workers=3 - count).save(path)

    expected = evaluate({"m": SeesTheColour()}, shifts)
    assert all(row.value == pytest.approx(1) for row in expected.of("accuracy"))
    in_processes(count, tmp_path / "out", make)
    for rank in range(count):
        assert ShiftReport.load(tmp_path / "out" / f"{rank}.json").rows == expected.rows


@pytest.mark.parametrize("length", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_of_processes_cover_a_set_once(monkeypatch, length, count):
    monkeypatch.setattr(own_processes, "count", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(own_processes, "rank", lambda rank=rank: rank)
        parts.append(own_processes.own_part(length))
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_is_wrong_in_one_process_is_said_by_all(tmp_path):
    data = random_images(10)
    data.labels[9] = CLASSES

    def make(path: Path) -> None:
        evaluate(models(), [Shift("x", lambda look: data)], predictions=tmp_path / "p")

    in_processes(2, tmp_path / "out", make)
    said = [(tmp_path / "out" / f"{rank}.txt").read_text() for rank in range(2)]
    assert "other classes" in said[0]
    assert said[0] == said[1]
    assert list((tmp_path / "p").iterdir()) == []


def test_only_the_first_process_writes(tmp_path):
    def make(path: Path) -> None:
        store = tmp_path / f"store{own_processes.rank()}"
        evaluate(models(), odd_sets(), store=store)

    in_processes(2, tmp_path / "out", make)
    assert len(list((tmp_path / "store0").iterdir())) == 2 * len(SIZES)
    assert not (tmp_path / "store1").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("blend", [True, False])
def test_weights_that_are_no_numbers_are_named_before_an_image_is_read(value, blend):
    model = linear()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder[1].weight[2, 3] = value
    tuned = Blend(WeightLine(model, other), 0.5) if blend else other
    shift = Shift("x", lambda look: pytest.fail("an image was read"))
    with pytest.raises(InputError, match=r"encoder\.1\.weight of mine has NaN") as caught:
        evaluate({"first": model, "mine": tuned}, [shift])
    assert "\n" not in str(caught.value)


def test_logits_that_are_no_numbers_are_refused_with_the_names_of_model_and_set():
    model = Sees(ReadsTheLabel(False))
    model.encoder.scale.data.fill_(3e38)
    report = evaluate({"big": model}, [painted("dark", 9)])
    assert all(math.isfinite(row.value) for row in report.rows)
    # An encoder that overflows on its way has weights that are all right.
    model.encoder.register_forward_hook(lambda module, args, out: out * 10)
    with pytest.raises(InputError, match="big gives NaN or infinity on images of dark"):
        evaluate({"good": models()["good"], "big": model}, [painted("dark", 9)])


def test_groups_are_of_the_images_of_the_set():
    shift = replace(painted("x", 9), groups=(0,) * 8, group_names=("a",))
    with pytest.raises(InputError, match="each of the 9 images of x, but got 8"):
        evaluate(models(), [shift])


def test_the_bar_counts_every_image_and_says_how_fast(tmp_path):
    import io

    from rich.console import Console

    from cfmask.inference.images_bar import ImagesPerSecond
    from cfmask.inference.settings import Settings

    inference = Inference(models(), Settings(batch_size=10, progress=True))
    stream = io.StringIO()
    inference.bar.live.console = Console(file=stream, force_terminal=True, width=120)
    inference.answer(odd_sets())
    (task,) = inference.bar.tasks
    assert task.completed == task.total == sum(SIZES.values())
    assert re.fullmatch(r"[\d,]+ images/s", ImagesPerSecond().render(task).plain)
    assert "left" in stream.getvalue()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"batch_size": 0}, "at least 1 images at a time"),
        ({"workers": -1}, "at least 0 workers"),
        ({"unreadable": "skip"}, "unreadable 'skip'"),
    ],
)
def test_settings_of_reading_are_checked_before_anything_is_read(wrong, what):
    with pytest.raises(InputError, match=what):
        evaluate({"m": models()["good"]}, [Shift("x", no_set)], **wrong)


def no_set(look):
    raise AssertionError("the set was made")


def test_each_process_has_its_own_gpu(monkeypatch):
    assert own_processes.device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_processes.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_processes.device() == torch.device("cuda", 3)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_torchrun_starts_the_command(tmp_path, count):
    import subprocess
    import sys

    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", str(root / "eval.py"), "open_clip:tiny-clip"]
    command += ["--images=31", f"--out={tmp_path}", "--pictures=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Everything of this run") == 1
    report = ShiftReport.load(tmp_path / "report.json")
    assert report.run["processes"] == count
    assert report.row("open_clip:tiny-clip", "id").total == 31
    broken = subprocess.run([*command, "--fit=no.csv"], capture_output=True, text=True, cwd=root)
    assert broken.returncode
    assert "error: Expected a fit" in broken.stderr
