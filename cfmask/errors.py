"""The one error for bad input: a single line that says what came and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Control characters, halves of a pair (bytes of a name that are no UTF-8), and what breaks a line
# or turns its direction without being seen.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


class InputError(ValueError):
    """What the user gave cannot be used. The commands print its text and exit with code 2.

    Args:
        message: one line. Line breaks and other characters that do not print, which names of files
            may have, become escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(_own_line(str(message))))


class UnreadableImage(InputError):
    """An image that is broken, missing, too large or none. Only what reads images raises it.

    What skips or marks unreadable images catches this alone: any other error is no broken file.
    """


def visible(text: object, lines: bool = False) -> str:
    """Text in which nothing steers a terminal or hides: such characters are shown as escapes.

    Args:
        text: what may come from anybody, such as a class name or a path.
        lines: leave line breaks as they are.
    """

    def shown(found: re.Match[str]) -> str:
        return "\n" if lines and found[0] == "\n" else ascii(found[0])[1:-1]

    return _HIDDEN.sub(shown, str(text))


def _own_line(message: str) -> str:
    """The message alone, where a worker process handed it on with its traceback."""
    if "\nOriginal Traceback (most recent call last):\n" not in message:
        return message
    return message.rstrip().rpartition("\n")[2].partition(": ")[2]


def at_least(least: int, number: int, what: str) -> None:
    """Refuse a number below its least.

    Args:
        least: the least that makes sense.
        number: what was given.
        what: it counts.

    Raises:
        InputError: it is below.
    """
    if number < least:
        raise InputError(f"Expected at least {least} {what}, but got {number}.")


def check_seed(seed: int) -> None:
    """Refuse a seed that Lightning, numpy or torch would not take.

    Raises:
        InputError: it is below 0 or has more than 32 bits.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"Expected a seed from 0 to {(1 << 32) - 1}, but got {seed}.")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in one line; of many the first."""
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Error for a name that is not among the known ones, with the nearest of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    return InputError(f"Unknown {what} {name!r}. Nearest: {', '.join(near)}.")


def no_option(option: str, known: Iterable[str], see: str) -> InputError:
    """Error for an unknown option, with the nearest.

    Args:
        option: as it was typed, without its value.
        known: all options, with their dashes.
        see: what lists them.
    """
    near = difflib.get_close_matches(option, list(known), n=3, cutoff=0.5)
    advice = f" Nearest: {', '.join(near)}." if near else ""
    return InputError(f"There is no option {option}.{advice} See {see}.")


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
