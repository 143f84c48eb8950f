from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from cfmask.commands.main import main
from cfmask.errors import visible
from cfmask.terminal import complain, printing, say, show_table

NASTY = "\x1b[31mred\x1b[0m [bold] [/] :dog: \x07\x9b2J\u202eevil\udcff\nnext\ttab\x00"


def report() -> Table:
    table = Table(title="Top-1, %", caption="† differs from the first.")
    table.add_column("model [/]")
    table.add_column("sketch")
    table.add_row("[red]tuned", "70.1–80.2 †")
    table.add_row(":dog: Käse", "−3.0")
    return table


def printed(encoding: str) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    before, sys.stdout = sys.stdout, stream
    try:
        with printing():
            show_table(report())
            say("Everything is in Käse\udcff/")
    finally:
        sys.stdout = before
    stream.seek(0)
    return stream.read()


def test_what_steers_a_terminal_or_hides_is_shown_and_the_rest_is_as_it_was():
    assert visible(NASTY) == (
        r"\x1b[31mred\x1b[0m [bold] [/] :dog: \x07\x9b2J\u202eevil\udcff\nnext\ttab\x00"
    )
    assert visible("Käse 日本 👩‍👧 a\nb", lines=True) == "Käse 日本 👩‍👧 a\nb"
    assert visible(Path("a\nb")) == r"a\nb"


def test_text_in_tables_is_never_markup():
    text = printed("utf-8")
    assert "[red]tuned" in text
    assert ":dog: Käse" in text
    assert "model [/]" in text
    assert r"Käse\udcff/" in text
    assert "70.1–80.2 †" in text


@pytest.mark.parametrize(("encoding", "cheese"), [("ascii", r"K\xe4se"), ("latin-1", "Käse")])
def test_tables_degrade_to_what_the_encoding_can_say(encoding, cheese):
    text = printed(encoding)
    assert "70.1-80.2 +" in text
    assert "-3.0" in text
    assert f":dog: {cheese}" in text
    assert not set("│┃━–†") & set(text)


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Full(io.StringIO):
    """A stream to a full disk."""

    write = flush = full


def test_a_full_output_is_one_line_at_the_end_of_the_work(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as end, printing():
        show_table(report())
        done.append("work")
    assert (end.value.code, done) == (2, ["work"])
    assert capsys.readouterr().err == "error: Cannot write the output: No space left on device.\n"


def test_an_error_of_the_work_itself_is_not_hidden_by_its_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(ZeroDivisionError), printing():
        say("x")
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as end, printing():
        say("x")
        raise SystemExit(1)
    assert end.value.code == 1


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_streams_that_are_not_there_take_nothing(monkeypatch, gone):
    monkeypatch.setattr(sys, gone, None)
    with printing(), printing():
        show_table(report())
        complain("x")
    assert getattr(sys, gone) is None


def test_a_reader_that_has_ended_leaves_the_work_to_end(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    done = []
    with pytest.raises(SystemExit) as end, printing():
        for number in range(3000):
            print(number, "x" * 100)
        done.append("work")
    assert (end.value.code, done) == (141, ["work"])
    sys.stdout.close()


def test_a_folder_that_was_deleted_under_the_command_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as end:
        main(["check", "--data_root", str(tmp_path)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has been deleted" in line


HELP = [sys.executable, "-m", "cfmask", "--help"]


@pytest.mark.parametrize(
    ("redirection", "code", "lines"),
    [(">&-", 0, 0), (">/dev/full", 2, 1), ("| true", 141, 0), ("2>&-", 0, 0), (">&- 2>&-", 0, 0)],
)
def test_the_command_prints_to_any_end(redirection, code, lines):
    line = f'set -o pipefail; "$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", line, "-", *HELP], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (code, lines), done.stderr
