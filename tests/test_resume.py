from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from support.checkpoints import Evil
from support.mortal import SERVER, Death, hold, train_in_child
from support.training import DEMO, FOLDER, SMALL, STEP, arguments, dies, fails, photos, run

from cfmask import ShiftReport
from cfmask.commands.train_model import train
from cfmask.runs.resume import newest
from cfmask.runs.run_folder import RunFolder
from cfmask.weights import damage, read_checkpoint

VALIDATION = "cfmask.methods:Method.validation_step"


def metrics(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "csv" / "metrics.csv").open()))


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "pretrained.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def assert_same_run(one: Path, other: Path, steps: int = 12, lost: int = 0) -> None:
    assert_same_weights(one, other)
    reports = [ShiftReport.load(run / "report.json") for run in (one, other)]
    assert reports[0].rows == reports[1].rows
    last = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    ]
    assert last[0]["global_step"] == last[1]["global_step"] == steps
    states = [c["optimizer_states"][0]["state"] for c in last]
    for key, state in states[0].items():
        assert all(torch.equal(state[name], states[1][key][name]) for name in state)
    assert last[0]["lr_schedulers"] == last[1]["lr_schedulers"]
    # Between a checkpoint and the line of its step a kill costs the line.
    assert [row for row in metrics(one) if row in metrics(other)] == metrics(other)
    assert len(metrics(one)) - len(metrics(other)) <= lost


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_saves_ends_as_if_it_was_not(whole, tmp_path):
    folder = tmp_path / "run"
    # While the third checkpoint is being written.
    assert dies(folder, "torch:save", 3) == -9
    assert list((folder / "checkpoints").glob("*.partial"))
    run(folder, "--resume=true")
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_if_it_was_not(whole, tmp_path):
    folder = tmp_path / "run"
    first = dies(folder, STEP, 4)
    assert list((folder / "checkpoints").glob("step-*2.ckpt"))
    # While the second checkpoint after going on is being written.
    second = dies(folder, "torch:save", 2, "--resume=true")
    assert list((folder / "checkpoints").glob("*.partial"))
    third = dies(folder, VALIDATION, 3, "--resume=true")
    assert (first, second, third) == (-9, -9, -9)
    run(folder, "--resume=true")
    assert_same_run(whole, folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch, with checkpoints of steps 6, 8 and 10."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert dies(folder, STEP, 12) == -9
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "step-000000008.ckpt", "step-000000010.ckpt"}
    return folder


@pytest.fixture
def halfway(stopped, tmp_path) -> Path:
    """A copy of it, in another place."""
    return Path(shutil.copytree(stopped, tmp_path / "halfway"))


def test_sigterm_saves_and_says_so_and_the_run_goes_on_from_its_own_config(whole, tmp_path):
    folder = tmp_path / "run"
    args = [*arguments(folder), "--checkpoints.every_steps=0"]
    assert train_in_child(args, Death(STEP, 3, signal.SIGTERM)) == 143
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000003.ckpt"]
    config = str(folder / "config.yaml")
    validating = Death(VALIDATION, 1, signal.SIGTERM)
    assert train_in_child(["--config", config, "--resume=true"], validating) == 143
    assert newest(folder / "checkpoints").name == "last.ckpt"
    train(["--config", config, "--resume=true"])
    assert_same_run(whole, folder)


def flip(path: Path, place: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def middle_of_weights(path: Path) -> tuple[int, str]:
    """Place of a byte in the largest part of a checkpoint, and the name of that part."""
    with zipfile.ZipFile(path) as file:
        part = max(file.infolist(), key=lambda part: part.file_size)
        # Its local header has 30 bytes, the name, and what pads the data.
        end = part.header_offset + 30 + len(part.filename) + part.file_size
        return end - part.file_size // 2, part.filename


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(whole, halfway):
    newer = halfway / "checkpoints" / "step-000000010.ckpt"
    flip(newer, middle_of_weights(newer)[0])
    with pytest.warns(UserWarning, match="step-000000010.ckpt is damaged"):
        run(halfway, "--resume=true")
    assert_same_run(whole, halfway)


def test_a_changed_weight_is_found(stopped, tmp_path):
    path = Path(shutil.copy(stopped / "checkpoints" / "step-000000010.ckpt", tmp_path / "x.ckpt"))
    assert damage(path) is None
    place, part = middle_of_weights(path)
    flip(path, place)
    assert damage(path) == f"the checksum of {part} is wrong"


def test_any_changed_byte_is_found_or_changes_nothing(stopped, tmp_path):
    sound = stopped / "checkpoints" / "step-000000010.ckpt"
    whole, rng = read_checkpoint(sound)["state_dict"], random.Random(0)
    found = 0
    for _ in range(20):
        path = Path(shutil.copy(sound, tmp_path / "x.ckpt"))
        flip(path, rng.randrange(path.stat().st_size))
        if damage(path):
            found += 1
        else:
            changed = read_checkpoint(path)["state_dict"]
            assert all(torch.equal(value, changed[name]) for name, value in whole.items())
    assert found >= 15


@pytest.mark.filterwarnings("ignore:The checkpoint .* is damaged")
def test_the_newest_whole_checkpoint_is_found(halfway):
    folder = halfway / "checkpoints"
    for name in ("step-000000010", "step-000000008", "last", "best"):
        assert newest(folder).stem == name
        path = folder / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning) as warned:
        assert newest(folder) is None
    assert len(warned) == 1
    assert {path.suffix for path in folder.iterdir()} == {".damaged"}


def test_a_run_that_has_ended_only_reports_again(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    (folder / "report.json").unlink()
    run(folder, "--resume=true", "--evaluation.images=10")
    assert_same_weights(whole, folder)
    rows = ShiftReport.load(folder / "report.json").rows
    assert {row.total for row in rows if row.metric == "accuracy"} == {10}


def test_a_checkpoint_that_would_run_code_is_not_resumed(halfway, tmp_path, capsys):
    path, made = halfway / "checkpoints" / "last.ckpt", tmp_path / "made"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "global_step": 999, "extra": Evil(made)}, path)
    assert "Refused" in fails(capsys, *arguments(halfway), "--resume=true")
    assert not made.exists()


@pytest.mark.parametrize("place", ["../thesis.ckpt", "/tmp/thesis.ckpt", "checkpoints/../x.ckpt"])
def test_a_checkpoint_does_not_delete_files_elsewhere(halfway, tmp_path, capsys, place):
    path = halfway / "checkpoints" / "step-000000010.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("BestCheckpoint"):
            state["best_k_models"] = {os.path.join(state["dirpath"], place): torch.tensor(0.1)}
    torch.save(checkpoint, path)
    before = {file: file.read_bytes() for file in halfway.rglob("*.ckpt")}
    assert "its own folder" in fails(capsys, *arguments(halfway), "--resume=true")
    assert before == {file: file.read_bytes() for file in halfway.rglob("*.ckpt")}


def test_another_config_is_not_resumed_and_the_setting_is_named(halfway, capsys):
    line = fails(capsys, *arguments(halfway), "--resume=true", "--model.lr=0.002")
    assert "model.init_args.lr is 0.0003 there and 0.002 here" in line


def test_a_run_goes_on_only_from_what_it_began_with(halfway, capsys):
    start = halfway / "pretrained.safetensors"
    flip(start, start.stat().st_size * 9 // 10)
    line = fails(capsys, *arguments(halfway), "--resume=true")
    assert "pretrained.safetensors is not the file that it began from" in line
    marker = halfway / "cfmask.json"
    begun = json.loads(marker.read_text())
    begun["images"]["files"] = "0"
    marker.write_text(json.dumps(begun))
    assert "other names, sizes or labels" in fails(capsys, *arguments(halfway), "--resume=true")


def test_an_unfinished_run_is_not_thrown_away(halfway, capsys):
    before = {file: file.read_bytes() for file in halfway.rglob("*") if file.is_file()}
    assert "--resume true" in fails(capsys, *arguments(halfway))
    for file, content in before.items():
        assert file.name in (".lock", ".holder") or file.read_bytes() == content


def test_two_runs_do_not_share_a_folder(halfway, capsys):
    there = SERVER.Event()
    other = SERVER.Process(target=hold, args=(halfway, there))
    other.start()
    assert there.wait(60)
    for options in (["--resume=true"], ["--overwrite=true"], []):
        line = fails(capsys, *arguments(halfway), *options)
        assert f"process {other.pid} on {socket.gethostname()} is at work there" in line
    other.kill()
    other.join()
    with RunFolder(halfway).held():
        pass


PLACES = (STEP, "os:fsync", VALIDATION, "torch.optim:AdamW.step", "torch:save")
LONG = ["--trainer.max_epochs=12", "--checkpoints.every_steps=1"]


def survive(folder: Path, args: list[str], kills: int) -> None:
    """Kill a run so many times at random places, then let it end."""
    rng = random.Random(7)
    for _ in range(kills):
        death = Death(rng.choice(PLACES), rng.randint(2, 4))
        assert train_in_child([*args, f"--run={folder}", "--resume=true"], death) == -9
    train([*args, f"--run={folder}", "--resume=true"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "folder with workers"])
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_was_not(tmp_path, kind):
    args, steps = ["--config", DEMO, *SMALL, *LONG], 72
    if kind != "digits":
        root = photos(tmp_path / "photos")
        args = [*FOLDER, *LONG, f"--data.root={root}", f"--evaluation.data_root={root}"]
        # 27 images: three steps of two batches, and one of the last batch alone.
        args += ["--data.workers=2", "--data.batch_size=4", "--data.crop=RandomCrop"]
        args += ["--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=16"]
        steps = 64
    train([*args, f"--run={tmp_path / 'whole'}"])
    survive(tmp_path / "run", args, 20)
    assert_same_run(tmp_path / "whole", tmp_path / "run", steps, lost=20)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run_still_saves(tmp_path, number, code):
    root = photos(tmp_path / "photos")
    args = [*FOLDER, f"--data.root={root}", f"--evaluation.data_root={root}"]
    args += ["--data.workers=2", "--data.batch_size=4", f"--run={tmp_path / 'run'}"]
    assert train_in_child(args, Death(STEP, 3, number)) == code
    assert newest(tmp_path / "run" / "checkpoints").name == "step-000000003.ckpt"
    assert train_in_child([*args, "--resume=true"]) == 0
