"""Escapes: text from anyone, such as the name of a class, for each format of a report.

Control characters and the like become visible in all of them, which is all that a terminal needs
(`cfmask.errors.visible`). HTML is escaped by the templates.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

from cfmask.errors import visible

# A cell that begins with one of these is a formula to a spreadsheet; wide forms too.
_FORMULA = tuple("=+-@＝＋－＠")
_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": r"$-$",
    "†": r"\textsuperscript{\dag}",
}


def markdown(text: str) -> str:
    """Text for any place in a line of Markdown; a line break becomes a space."""
    line = re.sub(r"([\\`*_{}\[\]<>|~#&$])", r"\\\1", _one_line(text))
    # At the start of a line these make a list, a rule or the underline of a heading.
    return re.sub(r"^(\d*)([.)=+-])", r"\1\\\2", line)


def fenced(text: str, language: str) -> str:
    """A code block of Markdown, with a fence longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text, lines=True).strip()}\n{fence}"


def latex(text: str) -> str:
    """Text for any place in LaTeX; a line break becomes a space."""
    # Two hyphens would become a dash.
    parts = re.split("(?<=-)(?=-)", _one_line(text))
    return "{}".join("".join(_LATEX.get(character, character) for character in p) for p in parts)


def csv_cell(value: Any) -> Any:
    """A value for a cell of CSV: numbers as they are, empty for None, text that is no formula."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value, lines=True)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Context in which matplotlib parses no mathematics and accepts letters without glyph."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # A missing glyph is drawn as a frame.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def drawn(text: str) -> str:
    """Text for a picture; matplotlib would hide a label that begins with an underscore."""
    line = visible(text)
    return f" {line}" if line.startswith("_") else line


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
