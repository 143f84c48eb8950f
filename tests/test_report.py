from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import models, painted
from support.reports import whole_report
from support.small_reports import cells, full_report, printed, small_report

from cfmask import InputError, ShiftReport, evaluate
from cfmask.comparison.joining import joined
from cfmask.evaluation.figures import Row
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import as_csv, as_latex, as_markdown


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
