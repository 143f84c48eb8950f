"""Several processes, interrupted evaluations, predictions, unreadable images, the progress bar."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from imagenet_trees import Sees as SeesTheColour
from imagenet_trees import find
from test_evaluate import CLASSES, ReadsTheLabel, Sees, models, painted, random_images

from cfmask import InputError, ShiftReport, UnreadableImage, evaluate
from cfmask import processes as own_processes
from cfmask.data.folders import Pictures
from cfmask.inference.inference import Inference
from cfmask.inference.wise import Blend, WeightLine
from cfmask.shift import Shift

# A parent that has imported everything forks in no time; one thread each, so that nothing hangs.
FORK = mp.get_context("fork")


def _child(rank: int, count: int, port: int, folder: Path, make: Callable[[Path], Any]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(where, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    try:
        with own_processes.joined():
            make(folder / f"{rank}.json")
    except InputError as error:
        (folder / f"{rank}.txt").write_text(str(error))


def in_processes(count: int, folder: Path, make: Callable[[Path], Any]) -> None:
    """Run `make` in several processes that have joined, each with a file to write."""
    import socket

    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        FORK.Process(target=_child, args=(rank, count, port, folder, make)) for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def without_run(report: ShiftReport) -> ShiftReport:
    """A report without what differs from run to run."""
    return replace(report, run={})


SIZES = {"id": 53, "sketch": 8, "tiny": 2, "single": 1}


def odd_sets() -> list[Shift]:
    """Sets that no number of processes divides, some with fewer images than there are processes."""
    return [painted(name, n, n // 3, name == "id") for name, n in SIZES.items()]


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


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    store = tmp_path / "answers"
    sets = odd_sets()
    asked = []

    def load(shift: Shift, kill: bool):
        def inner(look):
            asked.append(shift.name)
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return shift.load(look)

        return replace(shift, load=inner)

    first = [sets[0], sets[1], load(sets[2], True), sets[3]]
    child = FORK.Process(target=lambda: evaluate(models(), first, store=store))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(store.glob("*.safetensors"))) == 4

    report = evaluate(models(), sets, store=store)
    assert without_run(report) == without_run(evaluate(models(), sets))
    assert report.run["reused"] == ["id", "sketch"]
    assert report.run["images"] == SIZES["tiny"] + SIZES["single"]
    assert evaluate(models(), sets, store=store).run["images"] == 0


def test_old_answers_serve_nothing_that_has_changed(tmp_path):
    store, data = tmp_path / "answers", random_images(40)
    shift = Shift("x", lambda look: data)
    model = {"m": Sees(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)))}

    def reused(shift: Shift = shift, **options) -> bool:
        return evaluate(model, [shift], store=store, **options).run["reused"] == ["x"]

    assert not reused()
    assert reused()
    assert reused(batch_size=3)
    assert reused(replace(shift, licence="another", missing=("y",)))
    assert not reused(precision="bf16")
    assert not reused(decoder="pil")
    assert not reused(unreadable="wrong")
    assert not reused(replace(shift, note="another rule"))
    assert not reused(replace(shift, classes=(0, 1, 2, 3, 4)))
    data.images[17, 0, 0, 0] += 1
    assert not reused()
    assert reused()
    data.labels[3] = (data.labels[3] + 1) % CLASSES
    assert not reused()
    with torch.no_grad():
        model["m"].encoder[1].bias[0] += 1e-3
    assert not reused()
    for path in store.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert not reused()


def kept(folder: Path) -> tuple[ShiftReport, Path, list[str]]:
    """An evaluation with its one file of answers, and what is in the folder."""
    report = evaluate({"m": models()["misled"]}, [painted("x", 40, 9)], store=folder)
    (path,) = folder.glob("*.safetensors")
    return report, path, sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_damaged_answers_are_made_again(tmp_path, place):
    report, path, names = kept(tmp_path)
    whole = path.read_bytes()
    # Past the header, which only has to be read: one bit of the answers themselves.
    start = 8 + int.from_bytes(whole[:8], "little")
    at = int(start + place * (len(whole) - start))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    again, _, left = kept(tmp_path)
    assert not again.run["reused"]
    assert again.rows == report.rows
    assert left == names
    assert kept(tmp_path)[0].run["reused"] == ["x"]


def test_answers_of_another_model_or_set_are_not_believed(tmp_path):
    report, path, _ = kept(tmp_path / "a")
    other = models()["misled"]
    other.encoder.scale.data.fill_(-1)
    evaluate({"m": other}, [painted("x", 40, 9)], store=tmp_path / "b")
    evaluate({"m": models()["misled"]}, [painted("x", 41, 9)], store=tmp_path / "c")
    for folder in ("b", "c"):
        (foreign,) = (tmp_path / folder).iterdir()
        path.write_bytes(foreign.read_bytes())
        again = kept(tmp_path / "a")[0]
        assert again.rows == report.rows
        assert not again.run["reused"]


def forged(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Answers with other content or metadata, in a whole file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        tensors, facts = load_file(path), file.metadata()
    change(tensors, facts)
    save_file(tensors, path, facts)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, facts: tensors["correct"].fill_(True),
        lambda tensors, facts: tensors.pop("nll"),
        lambda tensors, facts: tensors.update(more=torch.zeros(1)),
        lambda tensors, facts: facts.clear(),
        lambda tensors, facts: facts.update(key="0" * 64),
    ],
)
def test_answers_that_someone_else_has_written_are_not_believed(tmp_path, change):
    report, path, _ = kept(tmp_path)
    forged(path, change)
    again = kept(tmp_path)[0]
    assert again.rows == report.rows
    assert not again.run["reused"]


def test_what_is_no_file_of_answers_is_passed_over(tmp_path):
    report, path, _ = kept(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert kept(tmp_path)[0].rows == report.rows
    assert path.is_file()


@pytest.mark.parametrize("place", ["a", "p"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / place).write_text("a file")
    with pytest.raises(InputError, match="Cannot write") as caught:
        evaluate(models(), odd_sets()[1:2], store=tmp_path / "a", predictions=tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_an_evaluation_that_fails_leaves_no_unfinished_predictions(tmp_path):
    bad = painted("x", 20)
    bad.load(None).labels[15] = CLASSES
    with pytest.raises(InputError):
        evaluate(models(), [bad], batch_size=5, predictions=tmp_path / "p")
    assert not list((tmp_path / "p").iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("blend", [True, False])
def test_weights_that_are_no_numbers_are_named_before_an_image_is_read(value, blend):
    model = Sees(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)))
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


def test_predictions_are_those_of_the_models(tmp_path):
    import pyarrow.parquet as pq

    torch.manual_seed(0)
    model = Sees(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)))
    data = random_images(23)
    data.labels[data.labels == 1] = 2
    shift = Shift("x", lambda look: data, classes=(0, 2, 3, 4))
    report = evaluate({"a model": model}, [shift], 10, predictions=tmp_path)
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"x--a_model--[0-9a-f]{8}\.parquet", path.name)
    table = pq.read_table(path).to_pydict()
    with torch.no_grad():
        logits = model(data.images.float() / 255)[:, [0, 2, 3, 4]]
    assert table["path"] == [str(i) for i in range(23)]
    assert table["label"] == data.labels.tolist()
    assert torch.tensor(table["logits"]).equal(logits)
    classes = torch.tensor([0, 2, 3, 4])
    assert table["top5"] == classes[logits.argsort(1, descending=True)].tolist()
    assert sum(table["correct"]) == report.row("a model", "x").correct
    assert all(table["readable"])
    assert pq.read_schema(path).metadata[b"classes"] == b"[0, 2, 3, 4]"


def test_predictions_of_several_processes_are_one_file_in_order(everything, tmp_path):
    import pyarrow.parquet as pq

    shifts = find(everything, "imagenet/r", "imagenet/a")
    alone, together = tmp_path / "alone", tmp_path / "together"
    evaluate({"m": SeesTheColour()}, shifts, predictions=alone)

    def make(path: Path) -> None:
        evaluate({"m": SeesTheColour()}, shifts, 1, predictions=together)

    in_processes(3, tmp_path / "out", make)
    names = sorted(p.name for p in together.iterdir())
    assert [name[:13] for name in names] == ["imagenet_a--m", "imagenet_r--m"]
    for name, count in zip(names, (3, 4), strict=True):
        table = pq.read_table(together / name)
        assert table.to_pydict() == pq.read_table(alone / name).to_pydict()
        assert table.num_rows == count
        assert all(Path(path.as_py()).is_file() for path in table["path"])


def test_models_and_sets_of_alike_names_have_files_of_their_own(tmp_path):
    import pyarrow.parquet as pq

    twins = ("night rain", "night_rain", "Night_rain", "nächtlicher Regen" * 20)
    both = {name: Sees(ReadsTheLabel(k > 0)) for k, name in enumerate(twins)}
    sets = [painted(name, 5 + k, 2) for k, name in enumerate(twins)]
    report = evaluate(both, sets, store=tmp_path / "a", predictions=tmp_path / "p")
    tables = [pq.read_table(path) for path in (tmp_path / "p").iterdir()]
    assert len(tables) == len({path.name.lower() for path in (tmp_path / "p").iterdir()}) == 16
    found = sorted((table.num_rows, sum(table["correct"].to_pylist())) for table in tables)
    assert found == sorted((row.total, row.correct) for row in report.of("accuracy") if row.total)
    assert evaluate(both, sets, store=tmp_path / "a").rows == report.rows


def test_two_evaluations_of_one_folder_at_once_do_not_touch_each_other(tmp_path):
    import pyarrow.parquet as pq

    def run() -> ShiftReport:
        return evaluate({"m": outer}, odd_sets()[:1], 10, store=tmp_path, predictions=tmp_path)

    class Interrupted(ReadsTheLabel):
        """An encoder in whose midst another evaluation begins and ends."""

        inner = None

        def forward(self, images):
            if Interrupted.inner is None:
                Interrupted.inner = False
                Interrupted.inner = run()
            return super().forward(images)

    outer = Sees(Interrupted(False))
    assert run().rows == Interrupted.inner.rows
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path)["label"].to_pylist() == odd_sets()[0].load(None).labels.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_answers_without_their_predictions_are_made_again(tmp_path):
    def images(**options) -> int:
        return evaluate(models(), odd_sets()[:1], store=tmp_path / "a", **options).run["images"]

    assert images() == 53
    assert images(predictions=tmp_path / "p") == 53
    assert images(predictions=tmp_path / "p") == 0
    next((tmp_path / "p").iterdir()).unlink()
    assert images(predictions=tmp_path / "p") == 53


def test_predictions_need_pyarrow(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install 'cfmask") as caught:
        evaluate(models(), odd_sets(), predictions=tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_the_bar_counts_every_image_and_says_how_fast(tmp_path):
    import io

    from rich.console import Console

    from cfmask.inference.inference import ImagesPerSecond
    from cfmask.inference.settings import Settings

    inference = Inference(models(), Settings(batch_size=10, progress=True))
    stream = io.StringIO()
    inference.bar.live.console = Console(file=stream, force_terminal=True, width=120)
    inference.answer(odd_sets())
    (task,) = inference.bar.tasks
    assert task.completed == task.total == sum(SIZES.values())
    assert re.fullmatch(r"[\d,]+ images/s", ImagesPerSecond().render(task).plain)
    assert "left" in stream.getvalue()


def test_labels_of_unreadable_images_are_those_of_the_set(everything):
    from cfmask.images import Preprocess
    from cfmask.inference.readable import Readable

    (shift,) = find(everything, "imagenet/objectnet")
    data = shift.load(Preprocess((8, 8)))
    assert isinstance(data, Pictures)
    readable = Readable(data, (8, 8), "wrong")
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
