from __future__ import annotations

import functools
import http.server
import os
import threading

import pytest
from support.folders import SMALL
from support.samples import seen
from support.shard_trees import copied, flip, png, write

from cfmask import InputError, ShardData
from cfmask.data.shard_fetch import fetch
from cfmask.data.shard_index import INDEX
from cfmask.data.shards import find_shards


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, notes which, and says nothing."""

    asked: list[str]

    def __init__(self, *args, asked: list[str], **kwargs) -> None:
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """A folder behind a URL, and what was asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{web.server_port}", asked
        web.shutdown()


def test_shards_behind_a_url_are_fetched_once(packed, server, tmp_path):
    folder, url, asked = server
    copied(packed, folder / "set")
    first = ShardData(f"{url}/set", cache=str(tmp_path / "cache"), workers=0)
    assert len(first.index) == 25
    assert sorted(asked) == sorted(f"/set/{file.name}" for file in packed.iterdir())
    again = ShardData(f"{url}/set/{INDEX}", cache=str(tmp_path / "cache"), workers=0)
    assert len(asked) == 6
    again.prepare(SMALL)
    assert len(seen(again)) == 23
    some = find_shards(f"{url}/set/shard-{{000000..000001}}.tar", tmp_path / "other")
    assert len(some) == 12


def test_shards_behind_a_url_need_no_index(server, tmp_path):
    folder, url, _ = server
    write(folder / "a-0.tar", {"x.png": png(), "x.cls": b"1"})
    write(folder / "a-1.tar", {"y.png": png(), "y.cls": b"0"})
    index = fetch(f"{url}/a-{{0..1}}.tar", tmp_path / "cache")
    assert index.labels.tolist() == [1, 0]


def test_a_fetched_shard_with_another_checksum_is_refused(packed, server, tmp_path):
    folder, url, _ = server
    copied(packed, folder / "set")
    flip(folder / "set" / "shard-000002.tar", 700)
    with pytest.raises(InputError, match=r"shard-000002\.tar.* the checksum"):
        fetch(f"{url}/set", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("shard-000002.tar*"))


def test_a_url_with_nothing_behind_it_is_named(server, tmp_path):
    with pytest.raises(InputError, match="Cannot fetch"):
        fetch(f"{server[1]}/set", tmp_path / "cache")


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch executed; ls://x.tar",
        "s3://bucket/x.tar; touch executed",
        "s3://bucket/$(touch executed).tar",
        "http://x/'`touch executed`'.tar",
        "ftp://x/y.tar",
    ],
)
def test_what_is_no_plain_url_is_refused_and_executes_nothing(tmp_path, url, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Expected a URL"):
        fetch(url, tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_s3_is_read_with_the_program_of_its_makers(packed, tmp_path, monkeypatch):
    program = tmp_path / "aws"
    program.write_text(
        f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec cat "{packed}/${{3#s3://bucket/set/}}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert len(fetch("s3://bucket/set", tmp_path / "cache")) == 25


DAMAGE = {
    "a page of a web server": lambda file: file.write_bytes(b"<html>404 not found</html>"),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:700]),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [INDEX, "shard-000002.tar"])
def test_a_bad_download_is_not_kept(packed, server, tmp_path, kind, name):
    folder, url, _ = server
    copied(packed, folder / "set")
    DAMAGE[kind](folder / "set" / name)
    with pytest.raises(InputError, match=rf"Fetched .*{name}, but it is damaged: "):
        fetch(f"{url}/set", tmp_path / "cache")
    (folder / "set" / name).write_bytes((packed / name).read_bytes())
    assert len(fetch(f"{url}/set", tmp_path / "cache")) == 25


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_without_an_index_is_not_kept(server, tmp_path, kind):
    folder, url, _ = server
    write(folder / "a.tar", {"x.png": png(), "x.cls": b"1"})
    sound = (folder / "a.tar").read_bytes()
    DAMAGE[kind](folder / "a.tar")
    with pytest.raises(InputError, match=r"Fetched .*/a\.tar, but it is damaged: "):
        fetch(f"{url}/a.tar", tmp_path / "cache")
    (folder / "a.tar").write_bytes(sound)
    assert len(fetch(f"{url}/a.tar", tmp_path / "cache")) == 1


@pytest.mark.parametrize("kind", ["cut", "a flipped byte"])
@pytest.mark.parametrize("name", [INDEX, "shard-000002.tar"])
def test_a_file_that_is_damaged_later_is_fetched_again(packed, server, tmp_path, kind, name):
    folder, url, asked = server
    copied(packed, folder / "set")
    home = fetch(f"{url}/set", tmp_path / "cache").folder
    asked.clear()
    if kind == "a flipped byte":
        flip(home / name, 0)
    else:
        DAMAGE[kind](home / name)
    assert len(fetch(f"{url}/set", tmp_path / "cache")) == 25
    assert asked == [f"/set/{name}"]
    assert (home / name).read_bytes() == (packed / name).read_bytes()


def test_a_damaged_note_of_what_is_sound_costs_a_look(packed, server, tmp_path):
    folder, url, asked = server
    copied(packed, folder / "set")
    home = fetch(f"{url}/set", tmp_path / "cache").folder
    asked.clear()
    for content in (b"[1]", b"no json", b'{"index.json": 3}'):
        (home / ".sound.json").write_bytes(content)
        assert len(fetch(f"{url}/set", tmp_path / "cache")) == 25
    assert asked == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"Cannot write to .*cache"):
        fetch("http://127.0.0.1:9/set", tmp_path / "cache")
