"""Files that are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from cfmask.errors import InputError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all, also where the power fails.

    Args:
        path: the file; one that is there is replaced when the new one is safe on the disk.
        write: writes to the path that it is given.

    Raises:
        InputError: it cannot be written, as on a full disk. The older file is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        # safetensors makes files that nobody else may read.
        partial.chmod(0o644)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    # Of torch's and safetensors' errors, only some are an OSError.
    except (OSError, RuntimeError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        line = " ".join(str(error).split())[:200]
        free = shutil.disk_usage(path.parent).free / 1e6
        raise InputError(
            f"Cannot write {path}: {line}. {free:,.0f} MB are free there; make room. What was "
            "written before is whole."
        ) from error


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
