"""LaTeX read back."""

from __future__ import annotations

import re

from cfmask.reporting.tables import DIFFERS

UNTEX = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textsuperscript{\dag}": DIFFERS,
    "$-$": "−",
    "--": "–",
    **{rf"\{c}": c for c in "&%$#_{}"},
}


def untex(text: str) -> str:
    """LaTeX text as a reader sees it; a special character that is not escaped is an error."""
    known = sorted(UNTEX, key=len, reverse=True)
    out = []
    text = re.sub(r"\\textbf\{([^{}]*)\}", r"\1", text)
    while text:
        for tex in known:
            if text.startswith(tex):
                out.append(UNTEX[tex])
                text = text[len(tex) :]
                break
        else:
            assert text[0] not in "&%$#_{}~^\\<>|", text
            out.append(text[0])
            text = text[1:]
    return "".join(out)
