from __future__ import annotations

import csv
import io
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from support.folders import SMALL, plant
from support.pictures import noise
from support.training import FOLDER
from support.training import photos as fruit

from cfmask import FolderData, InputError, ShiftReport, UnreadableImage
from cfmask.commands.parser import one_line_errors
from cfmask.commands.train_model import train
from cfmask.data import epochs, file_index
from cfmask.data.epochs import EpochLoader
from cfmask.data.unreadable import Skipping, check_file, refuse_unreadable
from cfmask.errors import visible


def encoded(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, kind, **options)
    return stream.getvalue()


SOUND = {
    "jpeg": encoded("jpeg"),
    "progressive jpeg": encoded("jpeg", progressive=True),
    "jpeg with notes after its end": encoded("jpeg") + b"notes" * 2000,
    "png": encoded("png"),
    "png with notes after its end": encoded("png") + b"notes" * 2000,
    "gif": encoded("gif"),
    "bmp": encoded("bmp"),
    "tiff": encoded("tiff"),
}
BROKEN = {
    "empty": b"",
    "text": b"this is not a picture",
    "page of a web server": b"<html><body>404 not found</body></html>",
    "cut jpeg": SOUND["jpeg"][:-300],
    "jpeg cut in its header": SOUND["jpeg"][:30],
    "cut png": SOUND["png"][:-300],
    "cut gif": SOUND["gif"][:1500],
    "cut bmp": SOUND["bmp"][:-300],
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_file_passes(tmp_path, kind):
    (tmp_path / "x").write_bytes(SOUND[kind])
    check_file(str(tmp_path / "x"))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_does_not(tmp_path, kind):
    (tmp_path / "x").write_bytes(BROKEN[kind])
    with pytest.raises(UnreadableImage, match=str(tmp_path / "x")):
        check_file(str(tmp_path / "x"))


@pytest.mark.parametrize("workers", [0, 1])
def test_all_unreadable_files_are_named_at_once(tmp_path, workers):
    paths = []
    for i, data in enumerate([*SOUND.values(), *BROKEN.values()]):
        paths.append(str(tmp_path / f"{i}.jpg"))
        Path(paths[-1]).write_bytes(data)
    with pytest.raises(InputError, match=f"{len(BROKEN)} of {len(paths)}") as caught:
        refuse_unreadable(paths, workers)
    named = str(caught.value)
    shown = [f"{path}," in named or f"{path};" in named for path in paths]
    assert shown == [i >= len(SOUND) for i in range(len(paths))]
    refuse_unreadable(paths[: len(SOUND)], workers)


def photos(tmp_path: Path, broken: tuple[str, ...] = ("ant/3.png", "bee/0.png")) -> Path:
    plant(tmp_path / "train", {"ant": 10, "bee": 10})
    for name in broken:
        file = tmp_path / "train" / name
        file.write_bytes(file.read_bytes()[:40])
    return tmp_path


def test_training_data_names_unreadable_images_before_anything_else(tmp_path):
    data = FolderData(str(photos(tmp_path)), workers=0)
    with pytest.raises(InputError, match="2 of 20") as caught:
        data.prepare(SMALL)
    assert "ant/3.png" in str(caught.value)
    assert "bee/0.png" in str(caught.value)


def test_the_older_word_for_stop_is_taken_and_others_are_refused(tmp_path):
    data = FolderData(str(photos(tmp_path)), workers=0, unreadable="fail")
    with pytest.raises(InputError, match="2 of 20"):
        data.prepare(SMALL)
    with pytest.raises(InputError, match=r"unreadable 'wrong'\. Nearest: stop, skip"):
        FolderData(str(tmp_path), unreadable="wrong")


def test_unreadable_validation_images_are_named_too(tmp_path):
    plant(photos(tmp_path, ()) / "val", {"ant": 1})
    (tmp_path / "val/ant/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"val/ant/0\.png"):
        FolderData(str(tmp_path), workers=0).prepare(SMALL)


@pytest.mark.filterwarnings("ignore:2 unreadable images were skipped")
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_can_be_skipped_and_are_counted(tmp_path, workers):
    data = FolderData(str(photos(tmp_path)), val_images=4, workers=workers, unreadable="skip")
    data.prepare(SMALL)
    assert data.skips() == 0
    train, val = data.train_dataloader(), data.val_dataloader()
    assert sum(len(labels) for _, labels in train) == 16
    assert sum(len(labels) for _, labels in val) == 4
    assert data.skips() == 2
    data.teardown("fit")
    assert [("ant/3.png" in line, "bee/0.png" in line) for line in data.skipped] == [
        (True, False),
        (False, True),
    ]


class Indices(torch.utils.data.Dataset):
    """Ten images that are their index; some cannot be read."""

    def __init__(self, *broken: int) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.broken:
            raise UnreadableImage(f"Cannot read image {index}.")
        return torch.tensor(index), index


def test_the_next_image_comes_in_place_of_an_unreadable_one():
    data = Skipping(Indices(3, 4, 9))
    assert [data[i][1] for i in range(10)] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert data.skipped.nonzero().flatten().tolist() == [3, 4, 9]


def test_images_of_which_none_can_be_read_end_the_skipping():
    with pytest.raises(InputError, match="10 in a row"):
        Skipping(Indices(*range(10)))[5]


def test_a_large_folder_is_looked_at_once(tmp_path, monkeypatch):
    from support.file_times import age

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "LARGE", 2)
    root = photos(tmp_path / "x", ())
    age(root)
    FolderData(str(root), workers=0).prepare(SMALL)
    (root / "train/ant/0.png").write_bytes(b"")  # which changes no folder
    FolderData(str(root), workers=0).prepare(SMALL)
    (root / "train/ant/0.png").rename(root / "train/ant/z.png")
    age(root, hours=0.5)
    with pytest.raises(InputError, match=r"z\.png"):
        FolderData(str(root), workers=0).prepare(SMALL)


class Deadly(Indices):
    """A worker that reads image 5 is killed, as for want of memory."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 5 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def read_deadly(errors: int) -> None:
    """Read as a command does, with the errors written to a file descriptor."""
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(2, "w")
    with one_line_errors():
        list(EpochLoader(Deadly(), 2, num_workers=2))


def test_a_killed_worker_is_one_line(tmp_path):
    # Torch's alarm can go off anywhere, so a process of its own has to bear it.
    with open(tmp_path / "errors", "w+") as errors:
        process = multiprocessing.get_context("fork").Process(
            target=read_deadly, args=(errors.fileno(),)
        )
        process.start()
        process.join(60)
    said = (tmp_path / "errors").read_text()
    assert process.exitcode == 2, said
    # Workers that serve the others have words of their own when nobody listens any more.
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: A process that reads images ended")
    assert "DataLoader worker" in line
    assert "fewer workers" in line


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError()])
def test_a_worker_that_is_killed_while_it_hands_a_batch_over_is_a_killed_worker(monkeypatch, error):
    dead = multiprocessing.get_context("fork").Process(target=print)
    dead.start()
    dead.join()

    class Batches:
        _workers: ClassVar = [dead]

        def __next__(self) -> None:
            raise error

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda _: Batches())
    with pytest.raises(RuntimeError, match=rf"^DataLoader worker \(pid\(s\) {dead.pid}\)"):
        next(iter(EpochLoader(Indices(), 2)))
    Batches._workers = []
    with pytest.raises(type(error)):
        next(iter(EpochLoader(Indices(), 2)))


class Held(Indices):
    """Image 5 waits until it is let go."""

    def __init__(self, go) -> None:
        super().__init__()
        self.go = go

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        assert index != 5 or self.go.wait(120), "nobody said that the batch is slow"
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_batch_is_named_while_it_is_waited_for(caplog, workers, monkeypatch):
    monkeypatch.setattr(EpochLoader, "patience", 0.2)
    go = multiprocessing.Event()

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Batch 2 has not come for 0 s" in record.getMessage():
                go.set()

    monkeypatch.setattr(epochs.log, "handlers", [LetGo()])
    assert len(list(EpochLoader(Held(go), 2, num_workers=workers))) == 5


def test_of_batches_that_come_in_time_nothing_is_said(caplog):
    assert len(list(EpochLoader(Indices(), 2))) == 5
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:1 unreadable images were skipped")
def test_a_report_says_how_many_training_images_were_skipped(tmp_path):
    root, run = fruit(tmp_path / "photos"), tmp_path / "run"
    whole = root / "train" / "lemon" / "6.jpg"
    # A name of three lines, and of bytes that are no UTF-8.
    broken = whole.rename(whole.with_name(f"a\nb\n{os.fsdecode(bytes([233]))}.jpg"))
    broken.write_bytes(broken.read_bytes()[:300])
    args = [*FOLDER, f"--run={run}", f"--data.root={root}", f"--evaluation.data_root={root}"]
    train([*args, "--data.unreadable=skip", "--data.val_images=2", "--data.crop=RandomCrop"])
    assert visible(broken) in (run / "skipped.txt").read_text()
    report = ShiftReport.load(run / "report.json")
    assert report.run["skipped_training_images"] == {str(run): 1}
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    assert [float(row["data/skipped"]) for row in rows if row["data/skipped"]][-1] == 1
