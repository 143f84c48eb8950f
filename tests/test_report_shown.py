"""Reports as a terminal, a notebook, a frame and a picture show them."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from PIL import Image
from support.evaluation import ReadsTheLabel, Sees, models, painted
from support.small_reports import cells, full_report, printed, small_report

from cfmask import InputError, ShiftReport, evaluate
from cfmask.evaluation.figures import Curve, Row
from cfmask.evaluation.metrics import METRICS
from cfmask.reporting.tables import as_csv


def test_the_table_has_the_figures_above_their_intervals():
    assert cells(small_report()) == [
        ["model", "id (ID)", "mean of shifts", "sketch"],
        ["zero-shot", "81.2", "33.3"],
        ["54.4–96.0", "20.0–40.0"],
        ["tuned", "100.0", "25.0"],
        ["79.4–100.0", "7.3–52.4"],
    ]


def test_the_table_marks_what_a_reader_must_know():
    report = full_report()
    found = cells(report)
    # Parts of a collection are left out, incomplete sets and the chosen alpha are marked.
    assert found[0] == ["model", "id (ID)", "mean of shifts", "sketch*"]
    assert found[3:] == [
        ["tuned", "100.0", "25.0†"],
        ["chosen by id", "79.4–100.0", "7.3–52.4"],
    ]
    text = " ".join(printed(report).split())
    assert "† differs from zero-shot" in text
    assert "* sketch is not whole" in text
    assert "†" not in printed(small_report())
    assert "not whole" not in printed(small_report())


@pytest.mark.parametrize(
    ("metric", "figures"),
    [
        ("nll", [["tuned", "1.235"], ["chosen by id", "1.100–1.300"]]),
        ("ece", [["tuned", "6.2"], ["chosen by id"]]),
        ("top5", []),
    ],
)
def test_every_metric_has_a_table(metric, figures):
    assert cells(full_report(), metric)[1:] == figures
    assert METRICS[metric].heading in printed(full_report(), metric)


SETS = ["id", "v2", "counter", "sketch", "rendition", "corruption"]


def digits_report() -> ShiftReport:
    """As many columns as the digits have, and models that were not evaluated in their order."""
    rows = [
        Row(model, shift, "accuracy", 0.5, 50, 100, 0.4, 0.6)
        for model in ("zero-shot", "tuned", "WiSE-FT 0.5")
        for shift in [*SETS[1:], "id", "O3", "mean of shifts", "harmonic mean"]
    ]
    names = ["zero-shot", "WiSE-FT 0.5", "tuned"]
    return ShiftReport(
        rows, {"sets": {name: {} for name in SETS}}, "id", curves=[Curve([0, 0.5, 1], names)]
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal_and_breaks_no_word(width):
    text = printed(digits_report(), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    words = set(text.replace(",", " ").replace(".", " ").split())
    # What is not shown is named.
    assert {*SETS, "shifts", "harmonic", "O3"} <= words
    assert "…" not in text
    assert ("Left out" in text) == (width < 100)
    assert ("40.0–60.0" in text) == (width >= 120)
    # The reference and the mean stay where others go.
    table = text.partition("Left out")[0]
    assert "(ID)" in table and "shifts" in table
    assert ("harmonic" in table) == (width >= 100)
    assert ("corruption" in table) == (width >= 80)


def test_models_of_a_curve_stand_in_the_order_of_alpha_and_the_reference_first():
    report = digits_report()
    names = ["zero-shot", "WiSE-FT 0.5", "tuned"]
    assert report.models == names
    assert [row[0].text for row in report.table().rows] == names
    assert report.columns()[:3] == ["id", "v2", "counter"]
    # A model in front stays there, and two curves may share their start.
    both = replace(
        report,
        rows=[
            Row(m, "id", "accuracy", 0.5)
            for m in ("other", "start", "a", "a 0.5", "b", "b 0.2", "b 0.7")
        ],
        curves=[
            Curve([0, 0.5, 1], ["start", "a 0.5", "a"]),
            Curve([0, 0.2, 0.7, 1], ["start", "b 0.2", "b 0.7", "b"]),
        ],
    )
    assert both.models == ["other", "start", "a 0.5", "a", "b 0.2", "b 0.7", "b"]


def test_names_are_shown_as_they_are_and_obeyed_by_no_terminal():
    report = ShiftReport([Row("[red]\x1b[31m m\nx", "[/b]", "accuracy", 0.5)])
    assert r"[red]\x1b[31m m\nx" in printed(report)
    assert "[/b]" in printed(report)
    assert "\x1b" not in printed(report)


def test_print_shows_the_table_whole_where_there_is_no_terminal(capsys):
    print(digits_report())
    printed_lines = capsys.readouterr().out.splitlines()
    assert printed_lines[0] == "Top-1 accuracy, %"
    assert re.split("  +", printed_lines[1]) == [
        "model", "id (ID)", *SETS[1:], "O3", "mean of shifts", "harmonic mean",
    ]  # fmt: skip
    assert "Left out" not in "".join(printed_lines)


def test_a_notebook_shows_the_table():
    html = full_report()._repr_html_()
    assert '<td class="best">100.0<small>79.4–100.0</small></td>' in html
    assert html.count("<tr>") == 3
    nasty = ShiftReport([Row("<script>", "a&b", "accuracy", 0.5)])._repr_html_()
    assert "<script>" not in nasty and "a&amp;b" in nasty


def test_a_frame_has_every_figure_as_the_csv_has_it():
    pd = pytest.importorskip("pandas")
    report = full_report()
    frame = report.frame()
    assert len(frame) == len(report.rows)
    assert frame.value.tolist() == [row.value for row in report.rows]
    assert frame.complete.tolist() == [row.shift != "sketch" for row in report.rows]
    wide = frame[frame.metric == "accuracy"].pivot(index="model", columns="shift", values="value")
    assert wide.loc["tuned", "sketch"] == 0.25
    read = pd.read_csv(io.StringIO(as_csv(report)), keep_default_na=False, na_values={"low": ""})
    assert read.columns.tolist() == frame.columns.tolist()
    assert ShiftReport().frame().empty


def test_a_frame_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"cfmask\[frames\]"):
        full_report().frame()


def test_the_trade_off_picture_has_a_point_for_each_model(tmp_path):
    shifts = [painted("id", 9, 1, reference=True), painted("sketch", 9, 3), painted("v2", 9, 5)]
    report = evaluate(models(), shifts)
    assert report.plot_trade_off(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_there_is_no_trade_off_without_a_reference_or_a_set_under_shift(tmp_path):
    model = {"m": Sees(ReadsTheLabel(False))}
    for shifts in ([painted("sketch", 3), painted("v2", 3)], [painted("id", 3, reference=True)]):
        assert not evaluate(model, shifts).plot_trade_off(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
