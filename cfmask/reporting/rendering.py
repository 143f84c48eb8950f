"""Rendering: a table of texts -> terminal, HTML, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.table import Table as Grid
from rich.text import Text

from cfmask.errors import visible
from cfmask.reporting.escapes import latex, markdown
from cfmask.terminal import WHOLE

# Width at which footnotes are wrapped.
PROSE = 100
GAP = 2


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the content.
        mark: of a footnote, after the text.
        below: an interval, below the text or in brackets after it.
        remark: small, after the name of a row.
        best: True shows the text in bold.
        faint: True shows it in grey, as a repeated name.
        hint: tooltip, on the page alone.
        drawing: SVG in place of the text, on the page alone.
    """

    text: str
    mark: str = ""
    below: str = ""
    remark: str = ""
    best: bool = False
    faint: bool = False
    hint: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its name.
        words: True for words, which are left-aligned and may be wrapped; False for figures.
        partly: True for figures of sets that are not whole.
        rank: in a narrow terminal the column of highest rank is left out first; 0 stays.
        unseen: True shows the head to screen readers alone.
    """

    head: str
    words: bool = False
    partly: bool = False
    rank: int = 0
    unseen: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        title: what it shows, with the unit.
        columns: C of them.
        groups: rows of C cells each, in groups with a line between them.
        notes: sentences below it.
        name: of its metric.
        meaning: of its metric.
    """

    title: str
    columns: Sequence[Column]
    groups: Sequence[Sequence[Sequence[Cell]]]
    notes: Sequence[str] = field(default=())
    name: str = ""
    meaning: str = ""

    @property
    def short(self) -> str:
        """The title without its unit, in lower case, for a list of titles."""
        title = self.title.rpartition(", ")[0] or self.title
        return title if title[:2].isupper() else title[:1].lower() + title[1:]

    @property
    def rows(self) -> list[Sequence[Cell]]:
        """The rows of all groups."""
        return list(chain.from_iterable(self.groups))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.terminal(options.max_width)

    def __str__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        return self.html()

    def terminal(self, width: int | None = None) -> RenderableType:
        """The table for a terminal of `width` characters; None for no limit.

        If there is no room, the intervals below the figures are left out first, then the columns of
        the highest rank, which are named. No word of a head is broken.
        """
        room = WHOLE if width is None else width
        shown, widths, with_below = self._layout(room)
        notes = [note for note in self.notes if with_below or not note.startswith(BELOW)]
        left_out = [c.head for place, c in enumerate(self.columns) if place not in shown]
        if left_out:
            notes.append(f"Left out for want of room: {', '.join(left_out)}.")
        prose = [Constrain(Text(visible(note), style="dim"), PROSE) for note in notes]
        grid = self._grid(shown, widths, with_below)
        return Group(Text(visible(self.title), style="bold"), grid, *prose)

    def _layout(self, room: int) -> tuple[list[int], list[int], bool]:
        """Indices and widths of the columns that are shown, and whether intervals are."""
        shown = list(range(len(self.columns)))
        while True:
            # Heads of one line, of two, or of as many as they have words.
            for with_below, lines in ((True, 1), (True, 2), (False, 1), (False, 2), (False, 99)):
                widths = [self._width(place, with_below, lines, room) for place in shown]
                if sum(widths) + GAP * (len(widths) - 1) <= room:
                    return shown, widths, with_below
            last = max(shown, key=lambda place: self.columns[place].rank)
            if not self.columns[last].rank:
                return shown, widths, False
            shown.remove(last)

    def _width(self, place: int, with_below: bool, lines: int, room: int) -> int:
        """Width of a column, at most a third of the room."""
        cells = [row[place] for row in self.rows]
        mark = max((cell_len(cell.mark) for cell in cells), default=0)
        texts = [cell_len(visible(cell.text)) + mark for cell in cells]
        texts += [cell_len(visible(cell.remark)) for cell in cells]
        texts += [cell_len(cell.below) for cell in cells if with_below]
        longest = max([_head_width(visible(self.columns[place].head), lines), *texts])
        return longest if room == WHOLE else min(longest, max(8, room // 3))

    def _grid(self, shown: Sequence[int], widths: Sequence[int], with_below: bool) -> Grid:
        grid = Grid(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0)
        )
        for place, width in zip(shown, widths):
            column = self.columns[place]
            grid.add_column(
                Text(visible(column.head)),
                justify="left" if column.words else "right",
                vertical="top",
                overflow="fold",
                width=width,
            )
        for group in self.groups:
            for row in group:
                marks = [max(len(other[i].mark) for other in self.rows) for i in shown]
                cells = [_in_terminal(row[i], mark, with_below) for i, mark in zip(shown, marks)]
                grid.add_row(*cells)
            if group is not self.groups[-1]:
                grid.add_section()
        return grid

    def html(self) -> str:
        """An element with the table, its notes and their style, for a notebook."""
        return environment().get_template("alone.html").render(table=self)

    def markdown(self) -> str:
        """The title and the table, without the notes."""
        head = [markdown(column.head) for column in self.columns]
        rule = ["---" if column.words else "---:" for column in self.columns]
        # Figures need no escapes, which would make the raw file harder to read.
        escapes = [markdown if column.words else str for column in self.columns]
        rows = (
            [_bracketed(cell, escape, "**{}**") for cell, escape in zip(row, escapes)]
            for row in self.rows
        )
        table = "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])
        return f"**{markdown(self.title)}**\n\n{table}"

    def latex(self) -> str:
        r"""The title as a comment and a `tabular` of booktabs, without the notes."""
        kinds = "".join("l" if column.words else "r" for column in self.columns)
        rows = [[_bracketed(cell, latex, r"\textbf{{{}}}") for cell in row] for row in self.rows]
        lines = [
            f"% {latex(self.title)}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(latex(column.head) for column in self.columns) + r" \\",
            r"\midrule",
            *(_row_start(" & ".join(row)) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines)


# Start of notes about intervals, which are left out together with these.
BELOW = "Below a figure"


def _head_width(head: str, lines: int) -> int:
    """Least width at which a head has at most so many lines, without a broken word."""
    words = head.split() or [""]
    width = max(map(cell_len, words))
    while width < cell_len(head) and _lines(words, width) > lines:
        width += 1
    return width


def _lines(words: Sequence[str], width: int) -> int:
    """Number of lines of words wrapped at a width."""
    lines, used = 1, 0
    for word in words:
        if used and used + 1 + cell_len(word) > width:
            lines, used = lines + 1, 0
        used += cell_len(word) + (used > 0)
    return lines


def printed(what: RenderableType) -> str:
    """Text without colours, of the width of this terminal; of any width if there is none."""
    real = Console()
    width = real.width if real.is_terminal else WHOLE
    console = Console(width=width, force_terminal=real.is_terminal, color_system=None)
    with console.capture() as shown:
        console.print(what)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def _in_terminal(cell: Cell, mark: int, with_below: bool) -> Text:
    """A cell, padded to the widest mark of its column."""
    text = Text(visible(cell.text), style="bold" * cell.best)
    text.append(f"{cell.mark:<{mark}}" if cell.text else "", style="not bold")
    if cell.remark:
        text.append(f"\n{visible(cell.remark)}", style="dim")
    if cell.below and with_below:
        text.append(f"\n{cell.below}", style="not bold dim")
    return text


def _bracketed(cell: Cell, escape: Callable[[str], str], bold: str) -> str:
    """Text, bold if it is the best, its mark, and the interval in brackets."""
    text = escape(cell.text)
    shown = (bold.format(text) if cell.best else text) + escape(cell.mark)
    shown += f" ({escape(cell.remark)})" if cell.remark else ""
    return f"{shown} [{escape(cell.below)}]" if cell.below else shown


def _row_start(cell: str) -> str:
    """A first cell that LaTeX does not read as an argument of the line break before it."""
    return f"{{}}{cell}" if cell[:1] in ("[", "*") else cell


def _shown(value: Any) -> Any:
    """A value for a page: text without hidden characters; markup stays as it is."""
    return visible(value, lines=True) if type(value) is str else value


def environment() -> Environment:
    """The templates of this folder; their values are escaped."""
    return Environment(
        loader=PackageLoader("cfmask", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
