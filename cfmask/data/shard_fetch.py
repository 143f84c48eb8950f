"""Fetch tar shards from a URL into a folder, once, with the `webdataset` library."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfmask.data.shard_index import INDEX, ShardIndex, checksum, scan
from cfmask.errors import InputError
from cfmask.files import read_json, whole_file, write_text

# No characters that a shell interprets: some schemes are fetched by a program.
URL = re.compile(r"(https?|gs|s3)://[\w./:%?=&+@~,-]+")
TAR = re.compile(r"\.tar(\?.*)?$")


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> `a-00.tar`, `a-01.tar`, `a-02.tar`."""
    if "{" not in pattern:
        return [pattern]
    urls: list[str] = _webdataset("shardlists").expand_urls(pattern)
    return urls


def fetch(where: str, cache: Path) -> ShardIndex:
    """Bring the shards behind a URL into a folder below `cache`, those that are not there yet.

    Several processes of one machine may ask for them; one of them fetches. A file gets its name
    when it has been looked at, and one that has changed since is looked at and fetched again.

    Args:
        where: URL of a folder with index.json, or of tar files, with braces.
        cache: a folder.

    Raises:
        InputError: no such URL, a file that does not arrive whole or is another, or a cache that
            cannot be written.
    """
    urls = expand(where) if TAR.search(where) else []
    wrong = next((url for url in urls or [where] if not URL.fullmatch(url)), None)
    if wrong:
        raise InputError(
            f"Expected a URL of http, https, s3 or gs without quotes or blanks, but got {wrong!r}."
        )
    base = urls[0].rpartition("/")[0] if urls else where.removesuffix(INDEX).rstrip("/")
    folder = cache / hashlib.sha256(base.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / ".lock"))
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder}: {error.strerror}. Give another cache."
        ) from error
    with lock:
        return _fetch_all(base, urls, folder)


def _fetch_all(base: str, urls: list[str], folder: Path) -> ShardIndex:
    names = [url.rpartition("/")[2].partition("?")[0] for url in urls]
    known = _Known(folder)
    try:
        known.get(f"{base}/{INDEX}", INDEX, partial(ShardIndex.load, folder))
    except NotFetched:
        if not urls:
            raise
        for url, name in zip(urls, names, strict=True):
            known.get(url, name, scan)
        return ShardIndex.scanned([folder / name for name in names])
    index = ShardIndex.load(folder)
    index = index.only(names) if names else index
    for shard in index.shards:
        known.get(f"{base}/{shard.name}", shard.name, partial(_compare, shard.sha256, folder))
    return index


class NotFetched(InputError):
    """Nothing came from a URL."""


class _Known:
    """Files that were fetched and looked at; any that has changed since is looked at again.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / ".sound.json"
        try:
            self.stamps = dict(read_json(self.notes))
        except (InputError, TypeError, ValueError):
            self.stamps = {}

    def get(self, url: str, name: str, check: Callable[[Path], object]) -> None:
        """Fetch a file that is not there or damaged, whole or not at all.

        Args:
            url: where it is.
            name: what it is called here.
            check: raises an InputError for a file that is not what was expected.

        Raises:
            NotFetched: nothing came.
            InputError: it cannot be written, or `check` refuses it.
        """
        target = self.folder / name
        if not self._is_sound(target, check):
            with whole_file(target) as part:
                _download(url, part)
                try:
                    check(part)
                except InputError as error:
                    # It has no name of its own yet.
                    why = str(error).replace(str(part), "it")
                    raise InputError(f"Fetched {url}, but it is damaged: {why}") from error
        if self.stamps.get(name) != _stamp(target):
            self.stamps[name] = _stamp(target)
            write_text(self.notes, json.dumps(self.stamps))

    def _is_sound(self, target: Path, check: Callable[[Path], object]) -> bool:
        if not target.is_file():
            return False
        if self.stamps.get(target.name) == _stamp(target):
            return True
        try:
            check(target)
        except InputError:
            return False
        return True


def _stamp(path: Path) -> list[int]:
    """Size and time of change of a file."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _compare(sha256: str, folder: Path, part: Path) -> None:
    if sha256 and checksum(part) != sha256:
        raise InputError(
            f"expected the checksum of {INDEX}, but got another; try again, or delete {folder} if "
            "the set has changed."
        )


def _download(url: str, part: Path) -> None:
    # The library has no scheme for s3; this is how its documentation reads from there.
    source = f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3:") else url
    try:
        with _webdataset("gopen").gopen(source) as stream, part.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    except OSError as error:
        raise NotFetched(f"Cannot fetch {url}: {error}. Check the URL and the disk.") from error


def _webdataset(module: str) -> Any:
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise InputError(
            "Expected the webdataset library for braces and URLs of shards, but it is not "
            'installed; pip install "cfmask[shards]".'
        ) from error
