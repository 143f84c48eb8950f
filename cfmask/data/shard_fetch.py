"""Fetch tar shards from a URL into a folder, once, with the `webdataset` library."""

from __future__ import annotations

import hashlib
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from cfmask.data.shard_index import INDEX, ShardIndex, checksum
from cfmask.errors import InputError
from cfmask.files import whole_file

# Nothing that means something to a shell: some schemes are fetched by a program.
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

    Several processes of one machine may ask for them; one of them fetches.

    Args:
        where: URL of a folder with index.json, or of tar files, with braces.
        cache: a folder.

    Raises:
        InputError: no such URL, or a file that does not arrive whole.
    """
    urls = expand(where) if TAR.search(where) else []
    wrong = next((url for url in urls or [where] if not URL.fullmatch(url)), None)
    if wrong:
        raise InputError(
            f"Expected a URL of http, https, s3 or gs without quotes or blanks, but got {wrong!r}."
        )
    base = urls[0].rpartition("/")[0] if urls else where.removesuffix(INDEX).rstrip("/")
    folder = cache / hashlib.sha256(base.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        return _fetch_all(base, urls, folder)


def _fetch_all(base: str, urls: list[str], folder: Path) -> ShardIndex:
    names = [url.rpartition("/")[2].partition("?")[0] for url in urls]
    try:
        _get(f"{base}/{INDEX}", folder / INDEX)
    except InputError:
        if not urls:
            raise
        for url, name in zip(urls, names, strict=True):
            _get(url, folder / name)
        return ShardIndex.scanned([folder / name for name in names])
    index = ShardIndex.load(folder)
    index = index.only(names) if names else index
    for shard in index.shards:
        _get(f"{base}/{shard.name}", folder / shard.name, shard.sha256)
    return index


def _get(url: str, target: Path, sha256: str = "") -> None:
    """Write a file whole or not at all."""
    if target.is_file():
        return
    # The library has no scheme for s3; this is how its documentation reads from there.
    source = f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3:") else url
    with whole_file(target) as part:
        try:
            with _webdataset("gopen").gopen(source) as stream, part.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except OSError as error:
            raise InputError(f"Cannot fetch {url}: {error}. Check the URL and the disk.") from error
        if sha256 and checksum(part) != sha256:
            raise InputError(
                f"Expected {url} with the checksum of {INDEX}, but got another; try again."
            )


def _webdataset(module: str) -> Any:
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise InputError(
            "Expected the webdataset library for braces and URLs of shards, but it is not "
            'installed; pip install "cfmask[shards]".'
        ) from error
