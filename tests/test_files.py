from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from support.damaged import DAMAGED
from support.full_disk import TENSORS, WRITERS

from cfmask import InputError
from cfmask.files import (
    check_out,
    is_unfinished,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    whole_file,
    whole_folder,
    write_text,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_neighbour_of_the_name_that_a_writer_would_take_stays(tmp_path):
    for name in ("x.partial", "x.part", "x.tmp"):
        (tmp_path / name).write_text("a neighbour's")
    write_text(tmp_path / "x", "new")
    assert names(tmp_path) == ["x", "x.part", "x.partial", "x.tmp"]
    assert {p.read_text() for p in tmp_path.glob("x.*")} == {"a neighbour's"}


def test_several_writers_of_one_file_at_once_leave_one_of_their_texts_whole(tmp_path):
    meet = threading.Barrier(4)

    def write(letter: str) -> None:
        with whole_file(tmp_path / "x") as file:
            file.write_text(letter * 1000)
            meet.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() in {letter * 1000 for letter in "abcd"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_whatever_ends_a_writer_leaves_the_older_file_and_nothing_else(tmp_path, error):
    (tmp_path / "x").write_text("old")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "y").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "x") as file:
        file.write_text("new")
        raise error
    with pytest.raises(error), whole_folder(tmp_path / "f") as folder:
        (folder / "y").write_text("new")
        raise error
    assert names(tmp_path) == ["f", "x"]
    assert (tmp_path / "x").read_text() == (tmp_path / "f" / "y").read_text() == "old"


def test_a_bug_of_the_writer_is_not_taken_for_a_full_disk(tmp_path):
    def broken(file: Path) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        write_whole(tmp_path / "x", broken)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_does_not_fit_is_one_line(tmp_path, one_megabyte, writer):
    with pytest.raises(InputError, match=r"Cannot write .*/x: .* MB are free there"):
        write_whole(tmp_path / "new" / "x", WRITERS[writer])
    assert names(tmp_path / "new") == []


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    for text in ("one", "two"):
        with whole_folder(tmp_path / "deep" / "f") as folder:
            (folder / text).write_text(text)
            assert not (tmp_path / "deep" / "f" / text).exists()
        assert names(tmp_path / "deep") == ["f"]
        assert names(tmp_path / "deep" / "f") == [text]


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    rename = Path.rename

    def refuses(self, target):
        if is_unfinished(self) and target == tmp_path / "f" and (self / "new").exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(InputError, match="busy"), whole_folder(tmp_path / "f") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["old"]


def test_a_linked_folder_stays_linked(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "scratch") == ["x"]


def places(root: Path) -> dict[str, Path]:
    """Where no file can be written."""
    (root / "file").touch()
    (root / "folder" / "x").mkdir(parents=True)
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to(root / "nowhere" / "x")
    return {
        "below a file": root / "file" / "x",
        "a folder": root / "folder",
        "an overlong name": root / ("x" * 300),
        "an overlong path": root.joinpath(*["x" * 200] * 30),
        "below a loop": root / "loop" / "x",
        "a null byte": root / "a\0b",
    }


def test_what_cannot_be_written_is_one_line(tmp_path):
    for what, path in places(tmp_path).items():
        with pytest.raises(InputError) as error:
            write_text(path, "text")
        assert str(error.value).startswith("Cannot write "), what
        with pytest.raises(InputError) as error:
            read_text(path)
        assert "\n" not in str(error.value), what
    assert [path for path in tmp_path.rglob("*") if is_unfinished(path)] == []


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "others").write_text("another's")
    (tmp_path / "x").symlink_to(tmp_path / "others")
    write_text(tmp_path / "x", "mine")
    assert (tmp_path / "others").read_text() == "another's"
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_rights_that_the_user_gives_new_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "x", lambda file: save_file(TENSORS, file))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_where_no_folder_can_be_is_told_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "new" / "folder", Path("new")):
        check_out(place)
    for place in (tmp_path / "file", tmp_path / "file" / "x" / "y"):
        with pytest.raises(InputError, match="file is a file"):
            check_out(place)
    with pytest.raises(InputError, match="no name of a folder"):
        check_out(Path("a\0b"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="read-only"):
        check_out(tmp_path / "new")


def test_text_is_utf8_whatever_the_machine_speaks(tmp_path, monkeypatch):
    write_text(tmp_path / "x", "Käse \udcff")
    assert (tmp_path / "x").read_bytes() == "Käse \\udcff".encode()
    assert read_text(tmp_path / "x") == "Käse \\udcff"


def test_a_pipe_is_read_only_while_somebody_writes_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="nobody writes"):
        read_text(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("text",))
    handle = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer.start()
    writer.join()
    assert read_text(tmp_path / "pipe") == "text"
    os.close(handle)
    with pytest.raises(InputError, match="a device"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_yaml_is_one_line(tmp_path, what):
    (tmp_path / "x.yaml").write_text(DAMAGED[what])
    with pytest.raises(InputError) as error:
        read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert str(tmp_path / "x.yaml") in str(error.value)


def test_yaml_with_aliases_is_read(tmp_path):
    text = "base: &b {lr: 1, on: yes}\none: {<<: *b, lr: 2}\ntwo: [*b, *b]"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    assert parse_yaml("[" * 90 + "]" * 90) is not None


@pytest.mark.parametrize("content", ["", "{", '{"a": NaM}', "[" * 100_000, "1" * 5000, "\\"])
def test_damaged_json_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="Expected JSON in") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_other_bytes_are_one_line(tmp_path):
    for name, read in (("x.json", read_json), ("x.yaml", read_yaml)):
        (tmp_path / name).write_bytes(b"\xff\xfe{}")
        with pytest.raises(InputError, match=r"byte 0 of .* is none"):
            read(tmp_path / name)
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "ä"}).encode())
    assert read_json(tmp_path / "x.json") == {"a": "ä"}
    with pytest.raises(InputError, match="at most"):
        read_text(tmp_path / "x.json", 5)
