"""Escapes: text from anybody, such as the name of a class, that stands for itself in each format.

In all of them control characters and the like become visible; see `cfmask.terminal.visible`, which
is also all that a terminal needs. In HTML the templates escape.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

from cfmask.errors import visible

# What a spreadsheet takes for a formula where a cell begins with it, wide forms included.
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
    # At its start a line could be a list, a rule or the underline of a heading.
    return re.sub(r"^(\d*)([.)=+-])", r"\1\\\2", line)


def fenced(text: str, language: str) -> str:
    """A block of code of Markdown, with a fence that the text does not have."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text, lines=True).strip()}\n{fence}"


def latex(text: str) -> str:
    """Text for any place in LaTeX; a line break becomes a space."""
    # Two hyphens would become a dash.
    parts = re.split("(?<=-)(?=-)", _one_line(text))
    return "{}".join("".join(_LATEX.get(character, character) for character in p) for p in parts)


def csv_cell(value: Any) -> Any:
    """A value for a cell of CSV: numbers as they are, nothing for None, text never a formula."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value, lines=True)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Context in which matplotlib takes no text for mathematics, in whatever letters it is."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # A frame stands for a letter that its font does not have.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def drawn(text: str) -> str:
    """Text for a picture; matplotlib leaves names with an underscore at their start out."""
    line = visible(text)
    return f" {line}" if line.startswith("_") else line


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
