"""SVG: a matplotlib drawing -> an element of a page.

Its colours are CSS variables (`--ink`, `--muted`, `--rule`, `--series-0` …), so that one picture
serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfmask.errors import visible
from cfmask.reporting.escapes import drawing

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cfmask",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.4,
}
MARKERS = ["o", "s", "^", "D", "v", "P"]
GLYPHS = ["●", "■", "▲", "◆", "▼", "✚"]


@dataclass(frozen=True)
class Ink:
    """Colours of a picture.

    Attributes:
        text: of titles and emphasised lines.
        muted: of labels and secondary lines.
        rule: of axes and grid.
        paper: background.
        series: of models, by their number.
    """

    text: str
    muted: str
    rule: str
    paper: str
    series: tuple[str, ...]

    def look(self, number: int) -> dict[str, Any]:
        """Colour and marker of a model."""
        number %= len(self.series)
        return {"color": self.series[number], "marker": MARKERS[number]}

    def style(self) -> Any:
        """Settings of matplotlib."""
        return STYLE | {
            "axes.edgecolor": self.rule,
            "axes.labelcolor": self.muted,
            "xtick.color": self.rule,
            "ytick.color": self.rule,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "grid.color": self.rule,
            "text.color": self.text,
            "savefig.facecolor": self.paper,
        }


# Placeholder colours, each replaced by a variable of the page.
PAGE = Ink("#010101", "#020202", "#030303", "#040404", tuple(f"#05050{i}" for i in range(6)))
VARIABLES = {PAGE.text: "ink", PAGE.muted: "muted", PAGE.rule: "rule", PAGE.paper: "paper"} | {
    colour: f"series-{i}" for i, colour in enumerate(PAGE.series)
}
# The page's colours in light mode, for pictures that stand alone.
LIGHT = Ink(
    "#1c1b1a",
    "#5c5a55",
    "#d9d6cf",
    "#ffffff",
    ("#2b5fa8", "#b8420f", "#0d7466", "#7a3fb5", "#8a6100", "#b0215c"),
)
Draw = Callable[[Axes, Ink], None]


def svg_of(draw: Draw, size: tuple[float, float], label: str) -> str:
    """SVG text of what `draw` puts on axes, for the body of a page.

    Args:
        draw: draws on axes in given colours.
        size: width and height in inches.
        label: description for screen readers.
    """
    stream = io.StringIO()
    with drawing(), rc_context(PAGE.style()):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), PAGE)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_page(stream.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    """An SVG file as an element: themed, without fixed size or namespaces, with unique ids."""
    label = visible(label)
    body = svg[svg.index("<svg") :]
    opening, _, rest = body.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', opening)
    rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", rest, count=1, flags=re.S)
    rest = re.sub(r"font-family: [^;\"]*;?", "", rest)
    rest = re.sub(r' id="(?:[\w.]+_\d+)"', "", rest)
    # A checksum of picture and label makes ids unique in the page.
    own = f"{zlib.crc32((label + rest).encode()):x}"
    rest = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>c{own}-", rest)
    for colour, name in VARIABLES.items():
        rest = rest.replace(colour, f"var(--{name})")
    rest = re.sub(r"\s+", " ", rest)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" {box}>{rest.strip()}'


def interval_bar(low: float, at: float, high: float, number: int, words: str) -> str:
    """SVG text of an interval with its figure beside a line at zero, for a cell of a table.

    Args:
        low: lower end of the interval, in [-1, 1] of the axis.
        at: the figure.
        high: upper end.
        number: of the model's colour.
        words: description for screen readers.
    """

    def stroke(x1: float, x2: float, y1: float, y2: float, width: float, colour: str) -> str:
        x1, x2 = (50 + 46 * x for x in (x1, x2))
        return (
            f'<line x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1:g}" y2="{y2:g}" stroke="{colour}" '
            f'stroke-width="{width:g}" vector-effect="non-scaling-stroke"/>'
        )

    lines = [
        stroke(0, 0, 0, 10, 1, "var(--muted)"),
        stroke(low, high, 5, 5, 1.6, "currentColor"),
        stroke(at, at, 2, 8, 3.5, "currentColor"),
    ]
    return (
        f'<svg class="bar s{number}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(visible(words))}">{"".join(lines)}</svg>'
    )
