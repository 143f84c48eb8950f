from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.reports import NASTY, gallery, small_report, whole_report

from cfmask import ShiftReport
from cfmask.evaluation.figures import Curve, Row
from cfmask.reporting.charts import drawn_models
from cfmask.reporting.disagreement import Answer, Disagreement
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import tables

pytestmark = pytest.mark.drawn

VOID = {"meta", "link", "br", "img", "hr", "input"}
RENAME = {
    name: f"{name} {NASTY}"
    for name in ("tuned", "v2", "encoder", "class", "version", "run", "method", "loss", "file")
}
RENAME["config"] = NASTY.replace("\n", " ")


class Page(HTMLParser):
    """Elements with their attributes and text; a tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            assert "div" in self.open
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open) and "svg" not in self.open:
            self.tables[-1][-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def text() -> str:
    return as_html(whole_report(), gallery())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def nasty() -> str:
    return as_html(whole_report(RENAME), gallery(RENAME))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_tables_have_the_figures_of_the_report(page):
    report = whole_report()
    for table, shown in zip(tables(report), page.tables):
        assert shown[0] == [column.head for column in table.columns]
        for row, line in zip(table.rows, shown[1:]):
            assert line == [cell.text + cell.mark + cell.below for cell in row]
    accuracy = {line[0]: line for line in page.tables[0][1:]}
    assert accuracy["zero-shot"][1] == "70.045.7–88.1"
    assert accuracy["tuned"][2] == "25.0†8.7–49.1"


def about(text: str) -> list[tuple[str, str]]:
    """What is told at the top of a page."""
    return re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.partition("<h2>")[0])


def test_the_top_says_what_ran_on_what_and_when(text, undrawn):
    rest = [
        ("model", "tiny"),
        ("evaluated on", "id, v2, sketch"),
        ("date", "2026-01-31 12:00 +0000"),
    ]
    assert about(text) == [
        ("run", "first"),
        ("method", "MaskedDistillation"),
        ("data", "FolderData photos"),
        ("trained", "2 epochs"),
        *rest,
    ]
    two = whole_report()
    two.run["runs"]["second"] = {"method": "FineTuning"}
    assert about(as_html(two)) == [
        ("run", "first – MaskedDistillation – FolderData photos – 2 epochs"),
        ("run", "second – FineTuning"),
        *rest,
    ]
    # Facts of another form, as a file from elsewhere may hold them, are none.
    for runs in ("x", [1], {}):
        two.run["runs"] = runs
        assert about(as_html(two)) == rest
    two.run["runs"] = {"a": "b"}
    assert about(as_html(two)) == [("run", "a"), *rest]


def test_the_curves_of_training_are_drawn(page, text):
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "chart" in a["class"]]
    assert "Loss by optimiser step" in charts and "Validation, % by optimiser step" in charts
    assert "● total" in page.text and "■ task" in page.text and "masked_share" not in page.text
    assert 'id="training"' not in as_html(replace(whole_report(), training={}))


def test_the_first_lines_say_what_was_gained_and_lost(page):
    text = squeezed(page.text)
    lead = "tuned against zero-shot: id 70.0 → 90.0 % (+20.0), mean of shifts 37.5 → 20.0 % (−17.5)"
    assert lead in text


def test_paired_differences_are_told_in_full(page):
    table = next(t for t in page.tables if t[0][2] == "points")
    assert table[1][:4] == ["tuned", "id (ID)", "+20.0", "−2.2 to +41.2"]
    assert table[1][5:] == ["0.219", "1", "5", "20"]
    assert table[2][5] == "< 0.001"
    assert "−20.0 points for tuned against zero-shot" in page.attributes("aria-label")


def test_a_comparison_of_two_reports_says_which_model_is_held_against_which():
    report = whole_report()
    other = replace(report.differences[1], first="WiSE-FT 0.5", second="zero-shot")
    page = Page(as_html(replace(report, differences=[*report.differences, other], reference=None)))
    table = next(t for t in page.tables if t[0][2] == "points")
    assert [line[0] for line in table[1:]] == [
        "zero-shot (against WiSE-FT 0.5)",
        "tuned (against zero-shot)",
        "tuned",
    ]
    assert table[0][6] == "only the other right"


def test_further_measures_are_folded_and_named(page):
    assert "1 further measure: expected calibration error" in squeezed(page.text)


def test_the_worst_classes_come_first(page):
    table = next(t for t in page.tables if t[0][1] == "class")
    assert table[1] == ["id (ID)", "seven", "5", "20.0", "20.0", "20.0"]
    # Four classes with 1, 3, 4 and 5 of 5 right: two are below the mean of all.
    assert [line[1] for line in table[1:]] == ["seven", "two"] * 3


@pytest.mark.parametrize(
    ("correct", "listed"), [([5] * 4, []), ([2] * 4, []), ([5, 5, 5, 4], ["four"])]
)
def test_a_class_is_listed_as_worst_only_where_others_are_better(correct, listed, undrawn):
    report = whole_report()
    for sets in report.details.values():
        for counts in sets.values():
            counts["classes"]["correct"] = correct
    page = Page(as_html(report))
    found = [line[1] for table in page.tables if table[0][1] == "class" for line in table[1:]]
    assert found == listed * 3
    assert ("worst" in page.attributes("id")) == bool(listed)


def test_what_is_not_whole_is_marked_wherever_it_stands(page):
    assert "sketch is not whole: 8 of 10 images, 2 of 2 classes" in page.text
    assert "Some sets are not whole" in page.text
    heads = [cell for table in page.tables for line in table for cell in line]
    assert "sketch*" in heads and "mean of shifts*" in heads
    assert "sketch" not in heads
    protocol = whole_report().protocol
    assert "not whole" in as_html(ShiftReport(whole_report().rows, protocol))
    del protocol["sets"]["sketch"]["size"]
    assert "not whole" not in as_html(ShiftReport(whole_report().rows, protocol))


def test_the_page_fetches_nothing(page, text, nasty):
    for source in (text, nasty):
        assert not re.search(r"https?:|@import|<script|srcset|url\((?!#)", source)
    for name in ("src", "href", "xlink:href"):
        assert all(value.startswith(("#", "data:")) for value in page.attributes(name))


def test_links_and_ids_meet(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.attributes("href") if value.startswith("#")]
    uses = [value[1:] for value in page.attributes("xlink:href")]
    clips = [value[5:-1] for value in page.attributes("clip-path")]
    assert targets and uses and clips
    assert {*targets, *uses, *clips} <= set(ids)


def test_names_are_no_markup(nasty):
    page = Page(nasty)
    for name in RENAME:
        assert squeezed(RENAME[name]) in squeezed(page.text), name
    assert "<b>a_b" not in nasty
    alts = [attrs["alt"] for tag, attrs in page.elements if tag == "img"]
    assert any(RENAME["class"] in alt for alt in alts)


def test_a_reader_who_does_not_see_is_told_the_same(page):
    for tag, attrs in page.elements:
        if tag == "img":
            assert attrs["alt"].strip()
        if tag == "svg":
            assert attrs["role"] == "img" and attrs["aria-label"].strip()
        if tag == "th":
            assert attrs["scope"] in ("row", "col")
    assert ("html", {"lang": "en"}) in page.elements


def test_pictures_are_those_of_the_gallery(page):
    shown = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    small, _ = gallery()
    assert len(shown) == 5
    data = base64.b64decode(shown[0].removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).tolist()
    assert pixels == small.image.flatten(1).T.tolist()
    assert shown[3].startswith("data:image/jpeg;base64,")
    assert "✓ seven" in page.text and "✗ two" in page.text and "zero-shot61\u00a0%" in page.text


def test_pictures_in_files_have_their_names(page):
    small, large = (
        attrs["alt"]
        for tag, attrs in page.elements
        if tag == "img" and "of" in attrs["alt"] and not attrs["alt"].startswith("relevance")
    )
    assert small == "image 7 of id: seven"
    assert large == "seven.png of sketch: seven"


def overlay(image: torch.Tensor, maps: torch.Tensor) -> np.ndarray:
    """The picture of relevance that a page shows, float (H, W, 3)."""
    answer = Answer("a", "two", 0.5, True, maps)
    page = Page(as_html(small_report(), [Disagreement("id", 0, "two", image, answer, answer)]))
    shown = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    data = base64.b64decode(shown[1].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def test_relevance_is_legible_on_dark_pictures():
    bright = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    maps = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    day, night = overlay(bright, maps), overlay(bright // 8, maps)
    # A dark picture is shown as a bright one is, but for what its few greys have lost.
    assert np.abs(day - night).max() < 20
    none, most = night[:16, :16], night[16:, :16]
    # Without relevance the picture alone is there, in greys that differ.
    assert np.ptp(none, axis=2).max() < 2
    assert none.std() > 20
    # A relevant patch has a colour that no grey has.
    assert np.ptp(most, axis=2).min() > 100
    assert overlay(torch.zeros(3, 8, 8).byte(), maps).shape == (8, 8, 3)


def test_all_of_the_run_and_the_protocol_is_told(page):
    text = squeezed(page.text)
    for words in ("torch: 2.14", "12.5", "run: x name: y", "95 % Clopper-Pearson", "encoder: tiny"):
        assert words in text
    assert "zero-shot, WiSE-FT 0.5, tuned" in text
    assert "example.org/x" in text


def test_the_chosen_model_of_a_curve_is_named(page):
    assert "Dashed: tuned, the best on id" in squeezed(page.text)
    names = ["zero-shot", "WiSE-FT 0.2", "WiSE-FT 0.5", "tuned"]
    curve = Curve([0, 0.2, 0.5, 1], names, "WiSE-FT 0.5", "id")
    longer = Page(as_html(ShiftReport(whole_report().rows, {}, None, curves=[curve])))
    assert "WiSE-FT 0.5 (chosen by id)" in [line[0] for line in longer.tables[0]]


def test_the_same_report_gives_the_same_page(text):
    assert as_html(whole_report(), gallery()) == text


@pytest.mark.parametrize(
    "report",
    [
        ShiftReport(),
        ShiftReport(small_report().rows),
        small_report(),
        ShiftReport(whole_report().rows, {"sets": {"v2": {}}}, None, curves=whole_report().curves),
    ],
    ids=["nothing", "rows alone", "an older report", "no reference"],
)
def test_a_report_that_has_less_is_a_whole_page(report):
    page = Page(as_html(report))
    assert "Evaluation under shift" in page.text


def test_models_inside_a_long_curve_have_no_colour_of_their_own():
    names = [f"a{i}" for i in range(9)]
    rows = [Row(name, "id", "accuracy", 0.5) for name in [*names, "other"]]
    curve = Curve([i / 8 for i in range(9)], names, "a3", "id")
    report = ShiftReport(rows, {}, "id", curves=[curve])
    assert drawn_models(report) == {"a0": 0, "a3": 1, "a8": 2, "other": 3}
    assert list(drawn_models(ShiftReport(rows, {}, "id"))) == names[:6]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)
FRAME = """<iframe style="border:0;display:block" width="{width}" height="700" srcdoc="{page}"
onload="const d = this.contentDocument; document.title += ' ' + d.documentElement.scrollWidth
+ ':' + d.querySelectorAll('svg.chart').length + ':' + d.styleSheets.length
+ ':' + {broken} + ':' + {scrolling}"></iframe>"""
# Words of headings that stand on two lines.
BROKEN = """[...d.querySelectorAll('h1,h2,h3,th')].flatMap(h => {
if (h.querySelector('.unseen')) return [];
const walk = d.createTreeWalker(h, 4), found = [];
for (let text; text = walk.nextNode();) for (const word of text.data.matchAll(/[^\\s]+/g)) {
const range = d.createRange(); range.setStart(text, word.index);
range.setEnd(text, word.index + word[0].length);
if (new Set([...range.getClientRects()].map(r => r.top)).size > 1) found.push(word[0]); }
return found; }).length"""
# Tables that go on beyond the edge, each with a shadow that scrolling moves away.
SCROLLING = """[...d.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth
&& getComputedStyle(s).backgroundAttachment == 'local, local, scroll, scroll').length"""


def chromium(page: str, folder: Path, *options: str) -> str:
    """What Chromium prints of the page in frames of both widths, one below the other."""
    parts = {"broken": html.escape(BROKEN), "scrolling": html.escape(SCROLLING)}
    frames = [FRAME.format(width=w, page=html.escape(page), **parts) for w in WIDTHS]
    file = folder / "frames.html"
    file.write_text(f"<title></title><body style='margin:0'>{''.join(frames)}", encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--window-size=1280,1400", f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run([CHROMIUM, *flags, file.as_uri()], capture_output=True)
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_page_without_scrolling_sideways(nasty, tmp_path):
    dom = chromium(nasty, tmp_path, "--dump-dom")
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    found = sorted(tuple(map(int, part.split(":"))) for part in title.split())
    charts = nasty.count('<svg class="chart"')
    assert charts >= 7
    assert [line[:4] for line in found] == [(390, charts, 1, 0), (1280, charts, 1, 0)]
    # The main table at least has no room on the narrow page.
    assert found[0][4] > 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_the_page_at_both_widths(text, tmp_path):
    file = tmp_path / "page.png"
    chromium(text, tmp_path, f"--screenshot={file}")
    picture = Image.open(file).convert("L")
    assert picture.size == (1280, 1400)
    for box in ((0, 0, 1280, 700), (0, 700, 390, 1400)):
        dark = picture.crop(box).histogram()[:128]
        assert 0.005 < sum(dark) / ((box[2] - box[0]) * 700) < 0.3
    # Beside the narrow page there is nothing.
    assert picture.crop((400, 710, 1280, 1400)).getextrema() == (255, 255)
