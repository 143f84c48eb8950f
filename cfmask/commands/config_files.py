"""Config files for jsonargparse: in UTF-8 everywhere, no waiting for pipes, no YAML bombs."""

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
    """Let jsonargparse refuse YAML that is nested too deeply or grows by its aliases."""
    set_loader("yaml", lambda text: parse_yaml(text, _plain_loader), (yaml.YAMLError,))


def read_config(path: str | os.PathLike[str]) -> str | None:
    """The text of a config; None if jsonargparse reads the same from the file itself.

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
