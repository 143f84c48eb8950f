"""Files: written whole or not at all; texts that are read, or refused in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from cfmask.errors import UNFIT, InputError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of torch's errors, those of its writer of files, which it gives no class of their own.
_TORCH = re.compile(r"PytorchStreamWriter|inline_container|iostream")
_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{12}\.partial", re.DOTALL)
# A config is far below all of these; one that is above is there to fill the memory.
BYTES, VALUES, DEPTH = 10_000_000, 100_000, 100
# What the readers of YAML and JSON raise at text that they cannot take.
_NO_TEXT = (*UNFIT, yaml.YAMLError)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; see `whole_file`.

    Args:
        path: the file.
        write: writes to the path that it is given.

    Raises:
        InputError: it cannot be written, as on a full disk.
    """
    with whole_file(path) as unfinished:
        write(unfinished)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Context with an empty file to write to, which becomes `path` if the context ends well.

    Several may write one file at a time: each has a name of its own, and the last one stays. A file
    that is there is replaced when the new one is safe on the disk, also where the power fails.

    Args:
        path: the file; its folder is made if it is not there.

    Raises:
        InputError: it cannot be written, as on a full disk. The older file is as it was.
    """
    unfinished = _beside(path)
    try:
        with _said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = stat.S_IMODE(unfinished.stat().st_mode)
            yield unfinished
            # safetensors makes files that nobody else may read.
            unfinished.chmod(mode)
            _sync(unfinished)
            unfinished.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Context with an empty folder to write to, which becomes `path` if the context ends well.

    Args:
        path: the folder; what is there is replaced at the end, and put back if that fails.

    Raises:
        InputError: it cannot be written, as on a full disk.
    """
    # A folder may be a link to a larger disk.
    path = path if "\0" in str(path) else Path(os.path.realpath(path))
    unfinished, older = _beside(path), _beside(path)
    try:
        with _said(path):
            unfinished.mkdir(parents=True)
            yield unfinished
            if path.exists():
                path.rename(older)
            try:
                unfinished.rename(path)
            except OSError:
                if older.exists():
                    older.rename(path)
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def obstacle(folder: Path) -> str:
    """Why a folder cannot be made or written to, in words; empty if nothing is known of it."""
    if "\0" in str(folder):
        return "it is no name of a folder"
    nearest = next(filter(os.path.exists, (folder, *folder.parents)), folder)
    if not os.path.isdir(nearest):
        return f"{nearest} is a file"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is read-only"


def check_out(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before there is anything to write.

    Raises:
        InputError: there is a file in its place, or it is read-only.
    """
    if why := obstacle(folder):
        raise InputError(f"Expected {folder} to be a folder to write to, but {why}.")


def is_unfinished(path: Path) -> bool:
    """Whether a file is what `whole_file` leaves behind where its process is killed."""
    return bool(_UNFINISHED.fullmatch(path.name))


def _beside(path: Path) -> Path:
    """A name that no other writer has, in the same folder and of an allowed length."""
    if not path.name or "\0" in str(path):
        raise InputError(f"Cannot write {path}: it is no name of a file or folder.")
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.partial")


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """Errors of writing a file as an InputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error
    except RuntimeError as error:
        if not _TORCH.search(str(error)):
            raise
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> InputError:
    line = one_line(error, 200)
    room = ""
    if not isinstance(error, OSError) or error.errno in FULL:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free / 1e6
            room = f" {free:,.0f} MB are free there; make room."
    return InputError(f"Cannot write {path}: {line}.{room} What was written before is whole.")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; see `whole_file`.

    Bytes of file names that are no UTF-8 are written as escapes.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, lambda file: file.write_bytes(text.encode("utf-8", "backslashreplace")))


def read_text(path: Path, most: int = 100 * BYTES) -> str:
    """The text of a file, or of a pipe that is being written.

    Args:
        path: the file, in UTF-8.
        most: bytes that are too many.

    Raises:
        InputError: it is not there, a folder, a device, a pipe that nobody writes, larger, or no
            UTF-8.
    """
    try:
        # Without O_NONBLOCK, opening a pipe without a writer never returns.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            kind = os.fstat(handle).st_mode
            pipe = stat.S_ISFIFO(kind)
            if pipe:
                os.set_blocking(handle, True)
            content = file.read(most + 1) if pipe or stat.S_ISREG(kind) else b""
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    # A null byte in the name.
    except ValueError as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    if not stat.S_ISREG(kind) and not content:
        raise InputError(f"Expected a file, but {path} is a device or a pipe that nobody writes.")
    if len(content) > most:
        raise InputError(f"Expected at most {most / 1e6:g} MB in {path}, but it has more.")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"Expected text in UTF-8, but byte {error.start} of {path} is none; is it damaged?"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except _NO_TEXT as error:
        raise InputError(f"Expected JSON in {path}, but {_brief(error)}.") from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: it cannot be read, is no YAML, or is made to fill the memory.
    """
    try:
        return parse_yaml(read_text(path, BYTES))
    except yaml.YAMLError as error:
        raise InputError(f"Expected YAML in {path}, but {_brief(error)}.") from error


def parse_yaml(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """The content of YAML text.

    Args:
        text: YAML.
        load: makes values of it.

    Raises:
        yaml.YAMLError: it is none, or nested too deeply, or too large with its aliases written out.
    """
    try:
        root = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if root is not None:
            _measure(root, {}, DEPTH)
        return load(text)
    except _NO_TEXT as error:
        raise yaml.YAMLError(_brief(error)) from error


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], left: int) -> tuple[int, int]:
    """Number of values of a node with its aliases written out, and its levels."""
    if left and id(node) not in known:
        # A node that is met again before it is measured holds itself.
        known[id(node)] = 0, DEPTH + 1
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair])]
        found = [_measure(part, known, left - 1) for part in inner]
        levels = 1 + max((part[1] for part in found), default=0)
        known[id(node)] = 1 + sum(part[0] for part in found), levels
    size, levels = known.get(id(node), (0, DEPTH + 1))
    if levels > left:
        raise yaml.YAMLError(f"it is nested deeper than {DEPTH} levels")
    if size > VALUES:
        raise yaml.YAMLError(f"it holds more than {VALUES:,} values")
    return size, levels


def _brief(error: Exception) -> str:
    line = one_line(error, 200)
    return line if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {line}"
