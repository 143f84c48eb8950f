"""The one error that bad input raises: a single line that says what came and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used. The commands print its text and exit with code 2."""


class UnreadableImage(InputError):
    """An image file that is broken, missing or none. Only the decoder raises it.

    What skips or marks unreadable images catches this alone: any other error is no broken file.
    """


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Error for a name that is not among the known ones, with the nearest of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    return InputError(f"Unknown {what} {name!r}. Nearest: {', '.join(near)}.")


# What libraries raise at values that they cannot take. Only calls of libraries are guarded by it:
# an error in the user's own code, or in ours, keeps its traceback.
UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def one_line(error: BaseException, most: int = 300) -> str:
    """The text of another library's error as one line, or its kind if it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__
