from __future__ import annotations

import json

import pytest
from support.reports import gallery, small_report
from support.runs import plant_run

from cfmask.comparison.compare import compare
from cfmask.reporting.publish import PUBLISHERS, publish


def test_every_format_is_written(tmp_path):
    files = publish(small_report(), tmp_path)
    assert [file.name for file in files] == [f"report.{suffix}" for suffix in PUBLISHERS]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for file, render in zip(files, PUBLISHERS.values()):
        assert file.read_text(encoding="utf-8") == render(small_report())


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path, monkeypatch):
    def fails(report):
        raise RuntimeError("no")

    publish(small_report(), tmp_path)
    before = (tmp_path / "report.csv").read_text()
    monkeypatch.setitem(PUBLISHERS, "csv", fails)
    with pytest.raises(RuntimeError):
        publish(small_report(), tmp_path)
    assert (tmp_path / "report.csv").read_text() == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_gallery_stands_in_the_page_alone(tmp_path):
    files = {file.suffix: file for file in publish(small_report(), tmp_path, gallery(), "x")}
    pictures = {suffix for suffix, file in files.items() if "data:image" in file.read_text()}
    assert pictures == {".html"}
    assert {file.stem for file in files.values()} == {"x"}


def test_an_evaluation_writes_every_format(tiny_clip, tmp_path):
    run = plant_run(tmp_path / "run", tiny_clip)
    report = compare([str(run)], shifts=["digits/id", "digits/sketch"], images=60)
    files = {suffix: (run / f"report.{suffix}").read_text() for suffix in PUBLISHERS}
    for row in report.of("accuracy"):
        figure = f"{100 * row.value:.1f}"
        assert all(figure in files[suffix] for suffix in ("md", "tex", "html"))
        assert f"{row.model},{row.shift},accuracy,{row.value}" in files["csv"]
    page = files["html"]
    assert "Where the two models differ" in page and page.count("<img") % 3 == 0
    assert "config of run" in page and "shifts:" in page
    saved = json.loads((run / "report.json").read_text())
    assert saved["run"]["config of run"] == (run / "config.yaml").read_text()
    compare([str(run)], shifts=["digits/id"], images=60, pictures=0)
    assert "<img" not in (run / "report.html").read_text()
