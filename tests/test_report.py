from __future__ import annotations

import copy
import io
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reports import size, whole_report
from rich.console import Console
from test_evaluate import ReadsTheLabel, Sees, models, painted

from cfmask import InputError, ShiftReport, evaluate
from cfmask.comparison.compare import joined
from cfmask.evaluation.figures import Curve, Difference, Fit, Row
from cfmask.evaluation.metrics import METRICS
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import as_csv, as_latex, as_markdown


def small_report() -> ShiftReport:
    rows = [
        Row("zero-shot", "id", "accuracy", 0.8125, 13, 16, 0.5439, 0.9598),
        Row("tuned", "id", "accuracy", 1.0, 16, 16, 0.7941, 1.0),
        Row("zero-shot", "mean of shifts", "accuracy", 0.333333333333333, None, None, 0.2, 0.4),
        Row("tuned", "sketch", "accuracy", 0.25, 4, 16, 0.0727, 0.5238),
    ]
    return ShiftReport(rows, {"means": {"mean of shifts": ["sketch"]}, "Ünï": [1, None]}, "id")


def full_report() -> ShiftReport:
    """A report that has something of everything."""
    sets = {"id": {}, "sketch": {"size": size(8)}, "noise 1": {"part_of": "c"}}
    ten = {"names": ["ant", "bee", "cat"], "correct": [3, 0, 4], "total": [4, 2, 4]}
    bins = {key: [1] * 15 for key in ("count", "confidence", "correct")}
    rows = [
        *small_report().rows,
        Row("tuned", "noise 1", "accuracy", 0.5, 8, 16, 0.2, 0.8),
        Row("tuned", "sketch", "nll", 1.23456, low=1.1, high=1.3),
        Row("tuned", "sketch", "ece", 0.0625),
        Row("tuned", "sketch", "worst_class", 0.0, 0, 2, 0.0, 0.8, "bee"),
    ]
    differences = [
        Difference("zero-shot", "tuned", "id", 0, 3, 16, 0.1875, -0.02, 0.4, 0.25),
        Difference("zero-shot", "tuned", "sketch", 9, 1, 16, -0.5, -0.7, -0.1, 0.0215),
    ]
    return ShiftReport(
        rows,
        {"sets": sets},
        "id",
        {"tuned": {"sketch": {"classes": ten, "bins": bins}}},
        differences,
        [Fit("sketch", "id", "logit", 1.071, -2.37, 0.869, 0.565, 0.847, "somewhere")],
        [Curve([0, 0.5, 0.75, 1], ["zero-shot", "a", "b", "tuned"], "tuned", "id")],
        {"seconds": 1.5},
    )


@pytest.mark.parametrize("report", [small_report(), full_report()], ids=["small", "full"])
def test_a_report_comes_back_as_it_was_saved(tmp_path, report):
    report.save(tmp_path / "report.json")
    assert ShiftReport.load(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_report_of_an_older_version_still_loads(tmp_path):
    old = {"model": "m", "shift": "id", "metric": "accuracy", "value": 0.5}
    old |= {"correct": 1, "total": 2, "low": 0.1, "high": 0.9}
    content = {"rows": [old], "protocol": {"metric": "top-1"}, "reference": "id"}
    (tmp_path / "report.json").write_text(json.dumps(content))
    row = Row("m", "id", "accuracy", 0.5, 1, 2, 0.1, 0.9)
    assert ShiftReport.load(tmp_path / "report.json") == ShiftReport(
        [row], {"metric": "top-1"}, "id"
    )


def test_the_report_of_an_evaluation_comes_back_as_it_was_saved(tmp_path):
    report = evaluate(models(), [painted("id", 5, reference=True), painted("sketch", 5)])
    report.save(tmp_path / "report.json")
    assert ShiftReport.load(tmp_path / "report.json") == report


def test_a_saved_report_replaces_an_older_one(tmp_path):
    (tmp_path / "report.json").write_text("old")
    small_report().save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["reference"] == "id"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"{}",
        b'{"rows": [{"model": "m"}], "protocol": {}, "reference": null}',
        b'{"rows": [], "protocol": {}, "reference": null, "more": 1}',
        b'{"rows": [], "protocol": {"sets": []}, "reference": null}',
        b'{"rows": [], "protocol": {"sets": {"x": {"size": {}}}}, "reference": null}',
        b'{"rows": [], "protocol": {"means": {"x": [1]}}, "reference": null}',
        b'{"rows": [], "protocol": {"metrics": {"x": {"digits": 99}}}, "reference": null}',
        b'{"rows": [], "protocol": {}, "reference": 3}',
        b'{"rows": [], "protocol": {}, "reference": null, "details": {"m": {"x": {"y": 1}}}}',
        b"[" * 100_000,
        b'{"rows": null, "protocol": {}, "reference": null}',
        b"\xff\xfe\x00",
    ],
)
def test_a_file_that_is_no_report_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        ShiftReport.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of JSON content."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


DEEP = json.loads("[" * 200 + "]" * 200)
ODD = (None, True, -1, 0, 10**400, 1e308, float("nan"), "", "[/b] {{ x }}", [], [None], {}, DEEP)
NOTHING = object()


def mutated(content: Any, rng: random.Random) -> Any:
    """JSON content with one to three values replaced or taken away."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(list(places(content)))
        holder = content
        for key in way:
            holder = holder[key]
        odd = rng.choice((*ODD, NOTHING))
        if odd is NOTHING:
            del holder[last]
        else:
            holder[last] = odd
    return content


def shown_or_refused(path: Path, content: Any, show: Callable[[ShiftReport], object]) -> bool:
    """Whether a report was refused, in one line; else it can be shown."""
    path.write_text(json.dumps(content))
    try:
        report = ShiftReport.load(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return True
    show(report)
    return False


def in_text(report: ShiftReport) -> None:
    printed(report)
    for write in (as_csv, as_markdown, as_latex):
        write(report)
    report.incomplete, report.columns()
    joined(report, replace(report), "other.json")


@pytest.mark.parametrize("whole", [full_report, whole_report])
def test_a_report_with_anything_else_in_it_is_refused_or_shown(tmp_path, whole):
    whole().save(tmp_path / "a.json")
    content, rng = json.loads((tmp_path / "a.json").read_text()), random.Random(0)
    refused = [
        shown_or_refused(tmp_path / "b.json", mutated(content, rng), in_text) for _ in range(60)
    ]
    assert 10 < sum(refused) < 60


@pytest.mark.slow
def test_the_page_of_a_report_with_anything_else_in_it_is_refused_or_shown(tmp_path):
    whole_report().save(tmp_path / "a.json")
    content, rng = json.loads((tmp_path / "a.json").read_text()), random.Random(1)
    for _ in range(150):
        shown_or_refused(tmp_path / "b.json", mutated(content, rng), as_html)


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(InputError, match="none"):
        ShiftReport.load(tmp_path / "none.json")


def test_a_value_that_is_not_there_is_named():
    assert small_report().value("tuned", "sketch") == 0.25
    with pytest.raises(KeyError, match="zero-shot on sketch"):
        small_report().value("zero-shot", "sketch")


def test_the_worst_classes_come_first_by_name():
    report = full_report()
    assert report.worst_classes("tuned", "sketch", 2) == [("bee", 0, 2), ("ant", 3, 4)]
    assert len(report.worst_classes("tuned", "sketch")) == 3
    with pytest.raises(KeyError):
        report.worst_classes("tuned", "id")


def test_a_name_without_its_family_is_understood_where_one_family_has_it():
    report = ShiftReport(
        [
            Row("m", "digits/id", "accuracy", 0.1),
            Row("m", "folders/sketch", "accuracy", 0.2),
            Row("m", "digits/O3", "accuracy", 0.3),
            Row("m", "O3", "accuracy", 0.4),
        ],
        {"sets": {"digits/id": {}, "folders/sketch": {}, "digits/O3": {}}},
        "digits/id",
    )
    assert [report.value("m", name) for name in ("id", "sketch", "digits/O3", "O3")] == [
        *(0.1, 0.2, 0.3, 0.4)
    ]
    heads = ["id (ID)", "folders/sketch", "digits/O3", "O3"]
    assert cells(report)[0] == ["model", *heads]
    again = replace(report, rows=[replace(row, shift="sketch") for row in report.rows[:1]])
    assert again.short("digits/sketch") == "digits/sketch"


def printed(report: ShiftReport, metric: str = "accuracy", width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(report.table(metric))
    return stream.getvalue()


def cells(report: ShiftReport, metric: str = "accuracy", width: int = 120) -> list[list[str]]:
    """What stands in the printed table, line by line; empty cells are left out."""
    _, *lines = printed(report, metric, width).splitlines()
    rule = next(place for place, line in enumerate(lines) if "─" in line)
    ends = [place for place, line in enumerate(lines) if line[:1] in "*†BL" and place > rule]
    body = lines[:rule] + lines[rule + 1 : min(ends, default=len(lines))]
    return [re.split(r"  +", line.strip()) for line in body]


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
