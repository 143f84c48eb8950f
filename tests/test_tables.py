from __future__ import annotations

import csv
import html
import io
import re

import pytest

from cfmask import ShiftReport
from cfmask.report import Row
from cfmask.tables import MARK, Measure, as_csv, as_latex, as_markdown, grids, incomplete

NASTY = "50 % <b>a_b</b> & {c} $x^2$ ~ \\d | `e` #1\nline"


def size(found: int) -> dict:
    whole = {"images": 10, "classes": 2}
    return {"found": {"images": found, "classes": 2}, "expected": whole, "complete": found == 10}


def small_report(name: str = "tuned") -> ShiftReport:
    rows = [
        Row("zero-shot", "id", "accuracy", 13 / 16, 13, 16, 0.5439, 0.9598),
        Row(name, "id", "accuracy", 1.0, 16, 16, 0.7941, 1.0),
        Row("zero-shot", "sketch", "accuracy", 5 / 16, 5, 16, 0.1102, 0.5866),
        Row(name, "sketch", "accuracy", 0.25, 4, 16, 0.0727, 0.5238),
        Row("zero-shot", "mean of shifts", "accuracy", 1 / 3, None, None, 0.2, 0.4),
        Row("zero-shot", "id", "odd", 1.25, None, None, 1.25, 1.25),
    ]
    protocol = {
        "interval": "95 % Clopper-Pearson",
        "sets": {"id": {"size": size(10)}, "sketch": {"size": size(8)}, "v2": {}},
        "means": {"mean of shifts": ["sketch", "v2"], "other": ["id", "v2"]},
    }
    return ShiftReport(rows, protocol, "id")


def test_the_csv_gives_every_row_back_whole():
    report = small_report(NASTY)
    lines = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [line.pop("complete") for line in lines] == ["true"] * 2 + ["false"] * 3 + ["true"]

    def number(text: str, kind: type) -> float | None:
        return kind(text) if text else None

    found = [
        Row(
            line["model"],
            line["shift"],
            line["metric"],
            float(line["value"]),
            number(line["correct"], int),
            number(line["total"], int),
            float(line["low"]),
            float(line["high"]),
        )
        for line in lines
    ]
    assert found == report.rows


def cells(text: str) -> list[list[str]]:
    """The tables of a Markdown text, line by line, without the rules."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    lines = [[cell.strip() for cell in line] for line in lines]
    return [line for line in lines if line[0] != "---"]


def test_markdown_has_the_figures_with_their_intervals():
    assert cells(as_markdown(small_report())) == [
        ["model", "id (ID)", f"sketch{MARK}", f"mean of shifts{MARK}"],
        ["zero-shot", "81.2 [54.4–96.0]", "**31.2** [11.0–58.7]", "33.3 [20.0–40.0]"],
        ["tuned", "**100.0** [79.4–100.0]", "25.0 [7.3–52.4]", ""],
        ["model", "id (ID)"],
        ["zero-shot", "1.250"],
    ]


def test_markdown_says_what_is_not_whole():
    text = as_markdown(small_report())
    assert f"- {MARK} sketch is not whole: 8 of 10 images, 2 of 2 classes." in text
    assert f"- {MARK} mean of shifts is not whole: made of sets that are not whole: sketch." in text
    assert "other" not in text
    assert MARK not in as_markdown(ShiftReport(small_report().rows, {}, "id"))


def unescaped_markdown(text: str) -> str:
    return html.unescape(re.sub(r"\\([\W_])", r"\1", text))


def test_names_are_no_markup_in_markdown():
    names = {line[0] for line in cells(as_markdown(small_report(NASTY)))}
    (nasty,) = (name for name in names if "50" in name)
    assert unescaped_markdown(nasty) == NASTY.replace("\n", " ")
    assert not re.search(r"(?<!\\)[`*_<>|#]", nasty)


UNTEX = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textsuperscript{\dag}": MARK,
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


def tex_cells(text: str) -> list[list[str]]:
    rows = [line[: -len(r" \\")] for line in text.splitlines() if line.endswith(r" \\")]
    return [[untex(cell) for cell in re.split(r" (?<!\\)& ?", row)] for row in rows]


@pytest.mark.parametrize("name", ["tuned", NASTY])
def test_latex_has_the_figures_of_markdown(name):
    report = small_report(name)
    plain = [
        [unescaped_markdown(cell).replace("**", "") for cell in line]
        for line in cells(as_markdown(report))
    ]
    assert tex_cells(as_latex(report)) == plain


def test_latex_is_a_table_of_booktabs():
    lines = as_latex(small_report()).splitlines()
    assert lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 2
    starts = [line for line in lines if line.startswith(r"\begin")]
    assert starts == [r"\begin{tabular}{lrrr}", r"\begin{tabular}{lr}"]
    assert r"\textbf{31.2} [11.0--58.7]" in "\n".join(lines)


def test_a_best_figure_needs_another_to_be_better_than():
    accuracy, odd = grids(small_report())
    best = {pair for pair in accuracy.cells if accuracy.is_best(*pair)}
    assert best == {("tuned", "id"), ("zero-shot", "sketch")}
    assert not odd.is_best("zero-shot", "id")


def test_what_is_not_whole_is_known_by_name():
    assert list(incomplete(small_report())) == ["sketch", "mean of shifts"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.05, "+5.0"), (-0.05, "−5.0"), (-0.0001, "+0.0"), (0.0, "+0.0")]
)
def test_a_signed_figure_shows_its_sign(value, shown):
    assert Measure("x", signed=True).text(value) == shown
