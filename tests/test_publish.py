from __future__ import annotations

import pytest
from reports import gallery, small_report

from cfmask.publish import PUBLISHERS, publish


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
