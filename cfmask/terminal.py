"""Terminal: how the commands print, whatever the encoding and wherever their output goes.

A command never ends because it cannot print: output without a reader is dropped, and the exit code
says so at the end.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from cfmask.errors import visible

# 128 + SIGPIPE, as a shell says of a program that wrote to a pipe whose reader has ended.
NO_READER = 141
# What stands for the characters of our tables and sentences in ASCII, one each.
_PLAIN = str.maketrans(dict(zip("–—−‐×·…†±²≤≥→“”„‘’\u00a0\u202f", '----x..+~2<>>"""\'\'  ')))
_DEGRADED = "cfmask.degraded"
# Characters of an error line at most.
MOST = 1500
# Columns that are enough for any table.
WHOLE = 100_000


def say(text: str) -> None:
    """Print one line."""
    print(visible(text))


def complain(text: str) -> None:
    """Print one line about what went wrong."""
    print(visible(text), file=sys.stderr)


def fail(message: object) -> NoReturn:
    """Print one line about what went wrong, and end with exit code 2."""
    # Some libraries quote all that they were given.
    text = str(message)
    complain(f"error: {text[:MOST]}{'…' * (len(text) > MOST)}")
    raise SystemExit(2)


def show_table(table: RenderableType, width: int = WHOLE) -> None:
    """Print a table of rich; text in it is never taken for markup.

    Args:
        table: what is printed.
        width: columns where the output has no width of its own; by default no table is cut.
    """
    _Screen(width=None if sys.stdout.isatty() else width).print(table)


class _Screen(Console):
    """A console that takes no text for markup."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See `Console.render_str`."""
        literal = {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(visible(text, lines=True), **{**options, **literal})


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Context of a command, in which printing raises no error.

    Raises:
        SystemExit: at the end, if the command itself ended well and its output could not be
            written: code 141 if its reader had ended, else 2 with a line on stderr.
    """
    if isinstance(sys.stdout, _Output):
        yield
        return
    _fill_gaps()
    before, out, errors = (sys.stdout, sys.stderr), _Output(sys.stdout), _Output(sys.stderr)
    streams: Any = out, errors
    sys.stdout, sys.stderr = streams
    end: SystemExit | None = None
    try:
        yield
    except SystemExit as error:
        end = error
    finally:
        out.flush()
        if out.fault and out.fault.errno != errno.EPIPE:
            complain(f"error: Cannot write the output: {out.fault.strerror or out.fault}.")
        errors.flush()
        sys.stdout, sys.stderr = before
    if out.fault and not (end and end.code):
        raise SystemExit(NO_READER if out.fault.errno == errno.EPIPE else 2)
    if end:
        raise end


def reader_is_gone() -> bool:
    """Whether the output of a command has no reader any more, as after ``| head -1``."""
    fault = sys.stdout.fault if isinstance(sys.stdout, _Output) else None
    return fault is not None and fault.errno == errno.EPIPE


def _fill_gaps() -> None:
    """Keep the numbers of streams that are closed from files that are opened later."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)


class _Output:
    """A stream that replaces what its encoding lacks, and drops all after a write that failed."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        known = text.encode(self.encoding, _DEGRADED).decode(self.encoding)
        with self._dropping():
            self.stream.write(known)
        return len(text)

    def flush(self) -> None:
        """See `TextIO.flush`."""
        with self._dropping():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error
            # What Python has kept back is written at its end, to the same number.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def _degraded(error: UnicodeError) -> tuple[str, int]:
    """What an encoding has no characters for, in ASCII or as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_DEGRADED, _degraded)
