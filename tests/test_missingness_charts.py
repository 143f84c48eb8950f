"""Charts of missingness: their figures, the choice of classes, and the page that holds them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from cfmask.missingness import sections
from cfmask.missingness.curves import measured
from cfmask.missingness.findings import LIME, LINEARITY, SHAPE, SIZES, WINDOWS, Findings
from cfmask.missingness.sections import CurveRow
from cfmask.reporting import panels
from cfmask.reporting.svg import MARKERS

pytestmark = pytest.mark.drawn

WAYS = ("black", "grey", "removed")


def shares(classes: int, seed: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {f"class {k}": [*rng.random(2), float(rng.integers(9, 13))] for k in range(classes)}


@pytest.fixture
def found() -> Findings:
    """Made-up findings of every kind, of a model whose name is no harmless text."""
    model, rng = "<b>_a & b", np.random.default_rng(0)
    curves = measured(rng.integers(0, 4, (9, 11)), rng.integers(0, 4, 9), None, 20)
    names = {f"class {k}": None for k in range(60)}
    counts = {name: float(rng.integers(9, 13)) for name in names}
    made = Findings({"models": {model: {"images": 9, "relevance": "masks"}}, "samples": 20})
    lime = {"coverage": [-0.1, -0.2, 0.1], "Jaccard": [0.2, 0.1, 0.3], "highest coverage": 0.4}
    curve = {"values": [0.5] * 11, "low": [0.4] * 11, "high": [0.6] * 11, "area": (0.5, 0.4, 0.6)}
    for way in WAYS:
        for order in ("random", "most"):
            made.removal.append(CurveRow(model, "patches", order, way, curves))
        row = {"model": model, "hidden by": way}
        by_class = {name: [*rng.random(2), counts[name]] for name in names}
        halves = {"object hidden": [0.2, 0.1, 0.3], "as much elsewhere": [0.6, 0.5, 0.7]}
        shape = {**row, "images": 9, **halves, "ratio": None, "classes": by_class}
        made.tables.setdefault(SHAPE, []).append(shape)
        quality = {**row, "segments": "patches", **lime, "ablation": curve}
        made.tables.setdefault(LIME, []).append(quality)
        for side in (32, 16):
            lengths = {"length, patch": 2.0, "length, whole": 9.0, "length, share of whole": 1.0}
            part = {"relative distance": side / 10, "cosine": 0.5, **lengths}
            ends = {name: [value, value - 0.1, value + 0.2] for name, value in part.items()}
            made.tables.setdefault(LINEARITY, []).append({**row, "patch side": side, **ends})
            size = {"image side": side, "change": [0.1, 0.05, 0.2]}
            made.tables.setdefault(SIZES, []).append({**row, **size})
            window = {"half side": 16, "moved by": side, "cosine": [0.9, 0.8, 0.95]}
            window["cosine of masks"] = 0.3
            made.tables.setdefault(WINDOWS, []).append({**row, **window})
    return made


def test_classes_are_chosen_as_the_released_code_does(found):
    rows = {row["hidden by"]: row["classes"] for row in found.tables[SHAPE]}
    places = list(rows["removed"])

    def ranking(colour: str) -> list[str]:
        layer, other = rows["removed"], rows[colour]
        enough = [name for name in places if layer[name][2] > 10]
        gains = {
            name: (other[name][0] - layer[name][0]) - (other[name][1] - layer[name][1])
            for name in enough
        }
        return sorted(enough, key=lambda name: gains[name], reverse=True)

    black, grey = ranking("black"), ranking("grey")
    top = sorted(set(black[:30]) & set(grey[:30]), key=places.index)[-10:]
    bottom = sorted(set(black[-10:]) & set(grey[-10:]), key=places.index)[:4]
    got = sections.telling(rows)
    assert got == top + [name for name in bottom if name not in top]
    assert 10 < len(got) <= 14
    assert sections.telling({"blur": rows["black"]}) == places[:14]


def test_charts_hold_the_figures(found):
    (accuracy, *_) = sections.removal(found.removal, WAYS)
    curve = found.removal[0].curves["accuracy"]
    for panel in accuracy.panels:
        assert panel.places == [10 * k for k in range(11)]
        for k, line in enumerate(panel.series):
            assert line.number == k
            assert line.y == pytest.approx([100 * value for value in curve.values])
            assert line.high == pytest.approx([100 * value for value in curve.high])
    (shape,) = sections.shape(found.tables[SHAPE], WAYS, ["class 7", "class 2"])
    overall, inside, outside = shape.panels
    assert overall.series[2].y == [20, 60] and overall.series[2].low == [10, 50]
    rows = found.tables[SHAPE]
    for half, panel in enumerate((inside, outside)):
        assert panel.places == ["class 7", "class 2"]
        for row, bar in zip(rows, panel.series):
            asked = (row["classes"][name][half] for name in panel.places)
            assert bar.y == pytest.approx([100 * value for value in asked])
    (linear,) = sections.linearity(found.tables[LINEARITY], WAYS)
    assert linear.panels[0].places == [16, 32]
    assert linear.panels[0].series[1].y == [1.6, 3.2]
    assert linear.panels[0].series[1].high == pytest.approx([1.8, 3.4])
    assert linear.panels[2].series[3] == panels.Series(None, [1, 1])
    smaller, window = next(
        sections.concordance(found.tables[SIZES], found.tables[WINDOWS], WAYS)
    ).panels
    assert smaller.series[0] == panels.Series(0, [0.1] * 2, [0.05] * 2, [0.2] * 2)
    assert window.series[3] == panels.Series(None, [0.3] * 2)


def test_the_page_and_the_pictures_hold_all_charts(found, tmp_path, monkeypatch):
    draw = panels.save
    # One picture is drawn; the others are drawn alike.
    monkeypatch.setattr(
        panels, "save", lambda path, *how: "shape" in path.name and draw(path, *how)
    )
    made = found.save(tmp_path, ["class 7"])
    names = ["accuracy", "kept", "entropy", "shape", "lime", "linearity", "concordance"]
    assert [path.stem for path in made[2:]] == names
    with Image.open(tmp_path / "shape.png") as picture:
        assert min(picture.size) > 200
    page = (tmp_path / "missingness.html").read_text()
    count = page.count('<svg class="chart"')
    assert count == 3 * 2 + 3 + 3 + 3 + 2 and page.count("</svg>") == count
    assert "<b>" not in page and "&lt;b&gt;_a &amp; b" in page
    # Nothing is fetched, and every section that the page leads to is there.
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert set(re.findall(r'href="#([a-z]+)"', page)) <= set(re.findall(r'id="([a-z]+)"', page))
    assert page.count("class 7") == 2


def test_more_series_than_colours_are_told_apart():
    looks = [panels._look(panels.LIGHT, k) for k in range(2 * len(MARKERS))]
    assert len({str(sorted(look.items())) for look in looks}) == len(looks)
    shown = panels.legend([str(k) for k in range(2 * len(MARKERS))])
    assert len({(number, glyph) for _, number, glyph in shown}) == len(shown)
