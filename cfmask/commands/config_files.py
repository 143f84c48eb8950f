"""Config files for jsonargparse: read in UTF-8 everywhere, never waited for, never blown up."""

from __future__ import annotations

import locale
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import get_loader, set_loader

from cfmask.errors import InputError
from cfmask.files import BYTES, parse_yaml, read_text

_plain_loader = get_loader("yaml")


def set_yaml_loader() -> None:
    """Let jsonargparse refuse YAML that is damaged in ways that it does not know of.

    It is nested too deeply, grows by its aliases, or gives values that cannot be made.
    """
    set_loader("yaml", lambda text: parse_yaml(text, _plain_loader), (yaml.YAMLError,))


def read_config(path: str | os.PathLike[str]) -> str | None:
    """The text of a config; None if jsonargparse, which knows where it lies, reads it alike.

    Raises:
        InputError: it is not there, a pipe that nobody writes, or no UTF-8.
    """
    text = read_text(Path(path), BYTES)
    alike = text.isascii() or locale.getpreferredencoding(False).lower() in ("utf-8", "utf8")
    return None if alike and Path(path).is_file() else text


def refuse_pipes(words: Sequence[str]) -> None:
    """Refuse a named pipe in place of settings in a file, for which jsonargparse would wait.

    Raises:
        InputError: naming it.
    """
    for option, word in zip(["", *words], words):
        name, is_set, value = word.partition("=")
        path = value if is_set and name[:1] == "-" else word
        if (name if is_set else option) not in ("-c", "--config") and _is_pipe(path):
            raise InputError(f"Expected a file, but {path} is a pipe.")


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
