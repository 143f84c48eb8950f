"""The command cfmask contexts: MetaShift's pickle -> a list of images in contexts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfmask.commands.parser import as_lists, command
from cfmask.shifts.metashift import convert
from cfmask.terminal import say


def convert_contexts(args: Sequence[str]) -> None:
    """The command ``cfmask contexts``.

    Args:
        args: command line without the program.
    """
    with command("cfmask contexts", __doc__) as parser:
        parser.add_argument("source", type=Path, help="MetaShift's pickle")
        parser.add_function_arguments(convert, as_group=False, skip={"source"})
        options = parser.parse_args(as_lists(args, "--classes")).as_dict()
        done = convert(**{name: _value(value) for name, value in options.items()})
        total = sum(done.contexts.values())
        say(f"{done.file}: {total} images in {len(done.contexts)} contexts.")
        if done.ambiguous:
            say(f"Left out: {done.ambiguous} images of several of the classes.")
        if done.absent:
            say(f"Left out: {done.absent} images that are not there.")


def _value(value: Any) -> Any:
    """A path of the parser's own type as Python's."""
    return Path(value) if isinstance(value, os.PathLike) else value
