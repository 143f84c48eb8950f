"""A run folder is ours or refused, and a run in it is whole whatever is killed when."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from support.training import photos

from cfmask import FolderData, InputError, ShardData
from cfmask.files import is_unfinished
from cfmask.images import Preprocess
from cfmask.runs import run_folder
from cfmask.runs.marker import check_beginning
from cfmask.runs.metrics_file import MetricsLogger
from cfmask.runs.run_folder import RunFolder

OLD = Path(__file__).parent / "fixtures" / "v0.1" / "run"
SETTINGS = yaml.safe_dump({"model": {"lr": 1}, "evaluation": {"images": 2}, "run": "x"})
OTHER = yaml.safe_dump({"model": {"lr": 2}, "evaluation": {"images": 2}, "run": "x"})
OURS = (".lock", ".holder")


class Killed(BaseException):
    """What a test raises where a process would be killed."""


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in OURS]
    # A kill leaves the file that was being written.
    paths = [path for path in paths if not is_unfinished(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def cheap(monkeypatch) -> None:
    """Weights of a few bytes."""
    monkeypatch.setattr(run_folder, "save_classifier", lambda c, path: path.write_text(str(c)))


def begin(folder: Path, config: str, name: str) -> RunFolder:
    run = RunFolder(folder)
    with run.held():
        run.start(config, name)
    return run


def come_to_something(folder: Path, name: str) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").write_text(name)


@pytest.fixture
def finished(cheap, tmp_path) -> Path:
    """A finished run, with a note of its user."""
    folder = tmp_path / "run"
    begin(folder, SETTINGS, "start")
    come_to_something(folder, "old")
    (folder / "weights.safetensors").write_text("tuned")
    (folder / "gallery").mkdir()
    (folder / "gallery" / "epoch_0.png").write_text("picture")
    (folder / "checkpoints" / "why.txt").write_text("a note")
    (folder / "notes.txt").write_text("a note")
    return folder


@contextlib.contextmanager
def killed_at(monkeypatch, number: int):
    """Context in which the n-th change of a name in a folder is not made any more."""
    calls = []
    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "replace"):
            original = getattr(Path, name)

            def counted(path, *args, original=original, **options):
                if path.suffix != ".partial" or path.exists():
                    calls.append(path)
                if len(calls) > number:
                    raise Killed
                return original(path, *args, **options)

            patch.setattr(Path, name, counted)
        yield calls


def test_a_replacement_that_is_killed_anywhere_gives_the_older_run_back(finished, monkeypatch):
    before, number = contents(finished), 0
    while True:
        calls: list = []
        try:
            with killed_at(monkeypatch, number) as calls:
                begin(finished, OTHER, "other start")
        except Killed:
            pass
        # The undoing is killed too, once, before it may end.
        with contextlib.suppress(Killed), killed_at(monkeypatch, number // 2):
            RunFolder(finished).check(SETTINGS, overwrite=False)
        assert RunFolder(finished).check(SETTINGS, overwrite=False)
        assert contents(finished) == before
        if len(calls) <= number:
            break
        number += 1
    assert number >= 8


def test_a_run_with_a_checkpoint_replaces_the_older_one_wherever_it_is_killed(
    finished, monkeypatch
):
    run = begin(finished, OTHER, "other start")
    come_to_something(finished, "new")
    with contextlib.suppress(Killed), killed_at(monkeypatch, 0):
        run.drop_replaced()
    for _ in range(5):
        with contextlib.suppress(Killed), killed_at(monkeypatch, 1):
            RunFolder(finished).check(OTHER, overwrite=False, resume=True)
    RunFolder(finished).check(OTHER, overwrite=False, resume=True)
    names = set(contents(finished))
    assert names == {
        "cfmask.json", "config.yaml", "pretrained.safetensors", "checkpoints/last.ckpt",
        "checkpoints/why.txt", "notes.txt",
    }  # fmt: skip
    assert (finished / "checkpoints" / "last.ckpt").read_text() == "new"
    assert yaml.safe_load((finished / "config.yaml").read_text())["model"] == {"lr": 2}


def test_what_no_run_wrote_is_named_and_stays(finished):
    run = begin(finished, OTHER, "other start")
    assert run.others() == ["checkpoints/why.txt", "notes.txt"]
    run.clear_unless_trained()
    assert (finished / "weights.safetensors").read_text() == "tuned"
    assert (finished / "notes.txt").read_text() == "a note"


def test_a_checkpoint_that_a_kill_left_half_written_does_not_stay(finished):
    half = finished / "checkpoints" / ".last.ckpt.0123456789ab.partial"
    half.write_text("half")
    (finished / "checkpoints" / ".mine.partial").write_text("a note")
    RunFolder(finished).check(SETTINGS, overwrite=False)
    assert not half.exists()
    assert (finished / "checkpoints" / ".mine.partial").exists()


def test_a_beginning_that_comes_to_nothing_leaves_nothing(cheap, tmp_path):
    run = begin(tmp_path / "a" / "run", SETTINGS, "start")
    (run.path / "csv").mkdir()
    run.clear_unless_trained()
    assert not run.path.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["thesis.txt", "config.yaml", "cfmask.json", "weights.safetensors"]
)
def test_a_folder_that_is_no_runs_is_not_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text('{"years": 4}')
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds other files"):
        RunFolder(tmp_path).check(SETTINGS, overwrite)
    assert contents(tmp_path) == before


def test_a_run_of_an_older_version_is_known_without_a_mark(cheap, tmp_path):
    folder = Path(shutil.copytree(OLD, tmp_path / "run"))
    config = (OLD / "config.yaml").read_text()
    assert RunFolder(folder).check(config, overwrite=False)
    with pytest.raises(InputError, match="another config"):
        RunFolder(folder).check(SETTINGS, overwrite=False)
    begin(folder, SETTINGS, "start")
    come_to_something(folder, "new")
    assert not RunFolder(folder).check(SETTINGS, overwrite=False, resume=True)
    assert (folder / "pretrained.safetensors").read_text() == "start"
    assert not list(folder.rglob("*.replaced"))


def test_settings_that_touch_no_weights_may_change(finished):
    config = {"model": {"lr": 1}, "evaluation": {"images": 9}, "run": "y"}
    config |= {"trainer": {"logger": {"class_path": "X"}}, "data": {"init_args": {"workers": 3}}}
    assert RunFolder(finished).check(yaml.safe_dump(config), overwrite=False)


@pytest.mark.parametrize("text", ["{", "- 1", "a: &a {b: *a}", "\0", "1: 2"])
def test_a_damaged_config_is_one_line(finished, text):
    (finished / "config.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        RunFolder(finished).check(SETTINGS, overwrite=False)
    assert "config.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_run_whose_config_is_gone_is_refused(finished):
    (finished / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config.yaml.* is gone"):
        RunFolder(finished).check(SETTINGS, overwrite=False, resume=True)


def identity(root: Path, data: type = FolderData, **options) -> dict:
    """What tells the images that a run would begin with from others."""
    images = data(str(root), **{"batch_size": 2, "workers": 0, **options})
    images.prepare(Preprocess((8, 8)))
    return images.identity()


CHANGES = {
    "class 1 was 'lime' and is 'lemons'": lambda lime: lime.rename(lime.with_name("lemons")),
    "27 images to train on and are 28 images": lambda lime: (lime / "new.jpg").write_bytes(
        (lime / "5.jpg").read_bytes()
    ),
    "other classes than these 4: lemon, lime, olive": lambda lime: shutil.copytree(
        lime, lime.with_name("olive")
    ),
    "other names": lambda lime: (lime / "5.jpg").rename(lime / "50.jpg"),
    "names, sizes": lambda lime: (lime / "5.jpg").open("ab").write(b"x"),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_run_does_not_go_on_with_other_images(cheap, tmp_path, words):
    lime = photos(tmp_path / "photos") / "train" / "lime"
    begun = identity(tmp_path / "photos")
    run = RunFolder(tmp_path / "run")
    with run.held():
        run.start(SETTINGS, "start", begun)
    check_beginning(run.path, identity(tmp_path / "photos"))
    CHANGES[words](lime)
    with pytest.raises(InputError, match=re.escape(words)):
        check_beginning(run.path, identity(tmp_path / "photos"))


def test_an_unfinished_run_goes_on_where_its_images_have_moved(cheap, tmp_path):
    def config(place):
        return f"data:\n  init_args:\n    root: {tmp_path / place}\n    batch_size: 2\n"

    begun = identity(photos(tmp_path / "here"))
    run = RunFolder(tmp_path / "run")
    with run.held():
        run.start(config("here"), "start", begun)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(InputError, match="another config"):
        run.check(config("there"), overwrite=False)
    assert not run.check(config("there"), overwrite=False, resume=True)
    check_beginning(run.path, identity(tmp_path / "there"))
    # A finished run would report on other images without a word.
    (run.path / "weights.safetensors").touch()
    with pytest.raises(InputError, match="another config"):
        run.check(config("there"), overwrite=False, resume=True)


def test_shards_are_told_apart(packed, tmp_path):
    other = Path(shutil.copytree(packed, tmp_path / "shards"))
    assert identity(packed, ShardData) == identity(other, ShardData)
    index = json.loads((other / "index.json").read_text())
    index["shards"][0]["sha256"] = "0" * 64
    (other / "index.json").write_text(json.dumps(index))
    assert identity(packed, ShardData) != identity(other, ShardData)


@pytest.mark.parametrize("text", ["{", "[]", '{"made by": "cfmask 1", "images": 3}'])
def test_a_damaged_mark_is_one_line(finished, text):
    (finished / "cfmask.json").write_text(text)
    with pytest.raises(InputError, match=r"cfmask.json|is damaged"):
        check_beginning(finished, {"classes": [], "train": "", "val": "", "files": ""})


def places(root: Path) -> dict[str, Path]:
    (root / "file").write_text("x")
    (root / "dangling").symlink_to(root / "nowhere" / "else")
    (root / "loop").symlink_to(root / "loop")
    return {
        "a file": root / "file",
        "is a file": root / "file" / "run",
        "too long": root / ("x" * 300),
        "link to nothing": root / "dangling",
        "a link to": root / "loop",
        "cannot be": Path("/proc/run"),
    }


@pytest.mark.parametrize(
    "words", ["a file", "is a file", "too long", "link to nothing", "a link to", "cannot be"]
)
def test_a_place_where_no_folder_can_be_is_one_line(tmp_path, words):
    run = RunFolder(places(tmp_path)[words])
    with pytest.raises(InputError, match=words):
        run.check(SETTINGS, overwrite=False)
        with run.held():
            pass


def test_a_read_only_place_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="read-only"):
        RunFolder(tmp_path / "runs" / "x").check(SETTINGS, overwrite=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_read_images_does_not_hold_the_folder_of_a_dead_run(tmp_path):
    received, sent = os.pipe()
    if not (run := os.fork()):
        with RunFolder(tmp_path / "run").held():
            worker = os.fork()
            if not worker:
                time.sleep(300)
                os._exit(0)
            os.write(sent, str(worker).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(run, 0)
    worker = int(os.read(received, 20))
    try:
        with RunFolder(tmp_path / "run").held():
            os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)


def rows(folder: Path) -> list[str]:
    return (folder / "csv" / "metrics.csv").read_text().splitlines()


def test_metrics_are_taken_up_where_a_run_goes_on(tmp_path):
    first = MetricsLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": step / 2}, step)
    first.save()
    first.log_metrics({"accuracy": 1.0}, 4)
    first.save()
    assert rows(tmp_path)[0] == "accuracy,loss,step"
    assert rows(tmp_path)[-1] == "1.0,,4"
    second = MetricsLogger(tmp_path)
    second.rewind(2)
    second.log_metrics({"loss": 7.0}, 2)
    second.save()
    assert rows(tmp_path) == ["loss,step", "0.0,0", "0.5,1", "7.0,2"]


@pytest.mark.parametrize("damage", ["0.5,1,9,9", "0.5", "0.5,one", "\0\0", "\xff\xfe"])
def test_a_damaged_line_of_the_metrics_is_left_out_and_counted(tmp_path, damage):
    (tmp_path / "csv").mkdir()
    text = f"loss,step\n0.0,0\n{damage}\n0.7,2\n"
    (tmp_path / "csv" / "metrics.csv").write_bytes(text.encode("latin-1"))
    logger = MetricsLogger(tmp_path)
    with pytest.warns(UserWarning, match="1 of its lines"):
        logger.rewind(3)
    assert rows(tmp_path) == ["loss,step", "0.0,0", "0.7,2"]


def test_metrics_are_whole_when_a_write_is_killed(tmp_path, monkeypatch):
    logger = MetricsLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    logger.log_metrics({"loss": 2.0, "other": 3.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerows", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            logger.save()
    assert rows(tmp_path) == ["loss,step", "1.0,0"]


def test_the_mark_says_who_made_the_folder(finished):
    assert json.loads((finished / "cfmask.json").read_text())["made by"].startswith("cfmask ")
