from __future__ import annotations

import csv
import html
import io
import re

import pytest
from support.latex import untex
from support.reports import NASTY, small_report, whole_report

from cfmask import ShiftReport
from cfmask.evaluation.figures import Row
from cfmask.evaluation.metrics import Metric
from cfmask.reporting.rendering import Table
from cfmask.reporting.tables import (
    DIFFERS,
    as_csv,
    as_latex,
    as_markdown,
    incomplete,
    table_of,
    tables,
)


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
            number(line["low"], float),
            number(line["high"], float),
            line["note"],
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
        ["model", "id (ID)", r"sketch\*", r"mean of shifts\*"],
        ["zero-shot", "81.2 [54.4–96.0]", "**31.2** [11.0–58.7]", "33.3 [20.0–40.0]"],
        ["tuned", "**100.0** [79.4–100.0]", "25.0 [7.3–52.4]", ""],
        ["model", "id (ID)"],
        ["zero-shot", "1.250"],
    ]


def test_markdown_says_what_is_not_whole():
    text = as_markdown(small_report())
    assert r"- \* sketch is not whole: 8 of 10 images, 2 of 2 classes." in text
    assert r"- \* mean of shifts is not whole: made of sets that are not whole: sketch." in text
    assert "other" not in text
    assert r"\*" not in as_markdown(ShiftReport(small_report().rows, {}, "id"))


def unescaped_markdown(text: str) -> str:
    return html.unescape(re.sub(r"\\([\W_])", r"\1", text))


def test_names_are_no_markup_in_markdown():
    names = {line[0] for line in cells(as_markdown(small_report(NASTY)))}
    (nasty,) = (name for name in names if "50" in name)
    assert unescaped_markdown(nasty) == NASTY.replace("\n", " ")
    assert not re.search(r"(?<!\\)[`*_<>|#]", nasty)


def tex_cells(text: str) -> list[list[str]]:
    rows = [line[: -len(r" \\")] for line in text.splitlines() if line.endswith(r" \\")]
    return [[untex(cell) for cell in re.split(r" (?<!\\)& ?", row)] for row in rows]


@pytest.mark.parametrize("name", ["tuned", NASTY])
def test_latex_has_the_figures_of_markdown(name):
    report = small_report(name)
    plain = [
        [unescaped_markdown(cell.replace("**", "")) for cell in line]
        for line in cells(as_markdown(report))
    ]
    assert tex_cells(as_latex(report)) == plain


def test_latex_is_a_table_of_booktabs():
    lines = as_latex(small_report()).splitlines()
    assert lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 2
    starts = [line for line in lines if line.startswith(r"\begin")]
    assert starts == [r"\begin{tabular}{lrrr}", r"\begin{tabular}{lr}"]
    assert r"\textbf{31.2} [11.0--58.7]" in "\n".join(lines)


def best(table: Table) -> set[tuple[str, str]]:
    """Model and head of each figure in bold."""
    heads = [column.head for column in table.columns]
    rows = [(row[0].text, zip(heads, row)) for row in table.rows]
    return {(model, head) for model, pairs in rows for head, cell in pairs if cell.best}


def test_a_best_figure_needs_another_to_be_better_than():
    accuracy, odd = tables(small_report())
    assert best(accuracy) == {("tuned", "id (ID)"), ("zero-shot", "sketch*")}
    assert best(odd) == set()


def test_where_less_is_better_the_least_is_the_best():
    mce, drop, mean = "ImageNet-C mCE (lower is better)", "ImageNet-W drop", "mean of 4"
    rows = [
        Row(model, shift, "accuracy", value)
        for model, value in (("a", 0.3), ("b", 0.2))
        for shift in (mce, drop, mean, "id")
    ]
    assert best(table_of(ShiftReport(rows))) == {("b", mce), ("a", mean), ("a", "id")}


def test_images_that_could_not_be_read_are_counted_out():
    report = small_report()
    report.protocol["sets"]["v2"]["unreadable"] = ["x.png", "y.png"]
    words = incomplete(report)
    assert words["v2"] == "2 unreadable images counted as wrong"
    assert words["other"].endswith("v2")
    report.protocol["sets"]["sketch"]["unreadable"] = ["z.png"]
    assert incomplete(report)["sketch"].endswith("classes, 1 unreadable image counted as wrong")


def test_what_is_not_whole_is_known_by_name():
    assert list(incomplete(small_report())) == ["sketch", "mean of shifts"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.05, "+5.0"), (-0.05, "−5.0"), (-0.0001, "+0.0"), (0.0, "+0.0")]
)
def test_a_signed_figure_shows_its_sign(value, shown):
    assert Metric("x", signed=True).text(value) == shown


def test_what_chance_does_not_explain_is_marked():
    report = whole_report()
    marked = [line[0] for line in cells(as_markdown(report)) if any(DIFFERS in c for c in line)]
    assert marked == ["tuned"]
    assert f"25.0{DIFFERS} [" in as_markdown(report)
    assert r"25.0\textsuperscript{\dag} [" in as_latex(report)
    assert f"- {DIFFERS} differs from zero-shot" in as_markdown(report)
    assert DIFFERS not in as_markdown(small_report())


def test_parts_of_a_large_collection_are_in_the_csv_alone():
    report = small_report()
    report.protocol["sets"]["sketch"]["part_of"] = "c"
    assert "sketch" in as_csv(report)
    heads = [line for line in cells(as_markdown(report)) if line[0] == "model"]
    assert heads[0] == ["model", "id (ID)", r"mean of shifts\*"]
