"""The results page is made of the files of figures, and of nothing else."""

from __future__ import annotations

import csv
import gzip
import statistics
from pathlib import Path

import results_page

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.csv*"))


def test_the_page_is_that_of_the_figures():
    assert FILES
    assert results_page.made(PAGE, ROOT / "benchmarks" / "results") == PAGE


def test_every_accuracy_of_the_page_is_a_mean_of_lines():
    for file in FILES:
        packed = file.suffix == ".gz"
        with gzip.open(file, "rt") if packed else file.open() as lines:
            rows = list(csv.DictReader(lines))
        methods = {row["method"] for row in rows}
        for method in methods:
            own = [
                100 * float(row["accuracy"])
                for row in rows
                if (row["method"], row["alpha"], row["set"]) == (method, "1", rows[0]["set"])
            ]
            expected = (
                f"| {method} | 1 | {statistics.mean(own):.1f} ± {statistics.stdev(own):.1f} |"
            )
            assert expected in PAGE
        # Each line says what made it, and a curve of a run has eleven points.
        assert all(row["command"].startswith("cfmask train ") and row["device"] for row in rows)
        points = {(row["method"], row["seed"], row["alpha"]) for row in rows}
        assert len(points) == 11 * len({(row["method"], row["seed"]) for row in rows})
