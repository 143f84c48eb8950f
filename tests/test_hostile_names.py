"""Names from anybody, through everything that prints or writes them."""

from __future__ import annotations

import csv
import io
import re
import warnings
from html.parser import HTMLParser

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from support.latex import untex
from support.reports import gallery, small_report, whole_report

from cfmask import ShiftReport, TimmClassifier, save_classifier
from cfmask.commands import predict_images as predicting
from cfmask.evaluation.answers import LabelRule
from cfmask.exporting.model_card import model_card
from cfmask.exporting.predicting import Prediction
from cfmask.exporting.provenance import Provenance
from cfmask.exporting.reading import open_model
from cfmask.exporting.writing import export
from cfmask.inference.predictions import prediction_file
from cfmask.reporting.charts import trade_off
from cfmask.reporting.page import as_html
from cfmask.reporting.sheet import draw
from cfmask.reporting.tables import as_csv, as_latex, as_markdown
from cfmask.terminal import printing, show_table

pytestmark = pytest.mark.drawn

NAMES = (
    "[red]", "[/]", ":dog:", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1",
    "\x1b[31mred\x1b[0m", "\x9b2J", "\x07", "\x00", "a\nb", "a\n\n# b", "\u202egnp.exe", "\udcff",
    "$x^$", r"$\frac$", r"\input{/etc/passwd}", "<script>alert(1)</script>", "</svg></td><b>x",
    "<!-- x", "&amp;", "| a | b |", "`code`", "```", "~~~", "# h", "1. one", "2) two", "- item",
    "---", "===", "![i](http://x/y.png)", "[l](javascript:x)", "**b**", "{{ 7*7 }}", "{x}", "%s",
    "_hidden", "*", "[x", "日本語 👩‍👧", "'; --", 'a,b;"c"', "x" * 300,
)  # fmt: skip


def seen(name: str) -> str:
    """What a reader sees of a name, written anew: hidden characters as Python escapes them."""
    return "".join(
        c if c.isprintable() or c in " \u200d" else c.encode("unicode_escape").decode()
        for c in name
    )


def on_one_line(name: str) -> str:
    return seen(" ".join(name.split()))


def report(name: str) -> ShiftReport:
    """A report in which all is named so."""
    rename = {k: f"{name}{'!' * n}" for n, k in enumerate(("tuned", "zero-shot", "v2", "id"))}
    return whole_report({**rename, "class": name, "encoder": name, "config": name})


def provenance(name: str) -> Provenance:
    facts = {"head": "linear", "mean": [0.5] * 3, "std": [0.5] * 3}
    images = {"size": [48, 48], "interpolation": "bicubic", "crop_pct": 1.0}
    spec = {**facts, "preprocess": images, "model": name, "class_names": [name, "b"]}
    counts = {"train_images": 8, "val_images": 2, "classes": 2, "steps": 1, "batch": 4}
    training = {"method": name, **counts}
    runs = [{"name": name, "config": f"run: x\n{name}\n```\n# y", "training": training}]
    return Provenance("timm", "tuned", spec, runs, {"torch": "2"}, report(name))


PLAIN_TABLES = as_markdown(report("harmless"))
PLAIN_CARD = model_card(provenance("harmless"), {"a": 1})


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_names_and_obeys_none(name, capsys, monkeypatch):
    found = Prediction(name, [(name, 0.5)])
    monkeypatch.setattr(predicting, "predict", lambda **options: iter([found]))
    with printing():
        predicting.predict_images(["model", "image"])
        for metric in ("accuracy", "ece"):
            show_table(report(name).table(metric), 2000)
    out = capsys.readouterr().out
    assert not [c for c in out.replace("\n", "") if not (c.isprintable() or c == "\u200d")]
    for line in seen(name).splitlines():
        assert name == "x" * 300 or line in out


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_calculates_no_name(name):
    found = report(name)
    rows = list(csv.DictReader(io.StringIO(as_csv(found), newline="")))
    assert [float(row["value"]) for row in rows] == [row.value for row in found.rows]
    for row, given in zip(rows, found.rows, strict=True):
        shown = "\n".join(map(seen, given.model.split("\n")))
        assert row["model"] in (shown, f"'{shown}")
        for cell in (row["model"], row["shift"]):
            assert cell.strip()[:1] not in tuple("=+-@＝＋－＠")


def test_figures_below_zero_stay_numbers_in_a_spreadsheet():
    (row,) = small_report().rows[:1]
    text = as_csv(ShiftReport([row.__class__("a", "b", "drop", -0.25)], {}, None))
    assert text.splitlines()[1].split(",")[3] == "-0.25"


def tokens(text: str) -> list:
    """All tokens of Markdown as GitHub and the Hub read it."""
    found = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(text)
    return [t for token in found for t in [token, *(token.children or [])]]


def kinds(text: str) -> list[str]:
    return [token.type for token in tokens(text) if token.type != "text"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markdown(name):
    text = as_markdown(report(name))
    assert kinds(text) == kinds(PLAIN_TABLES)
    # Inline tokens of one cell; adjacent texts belong together.
    cells = [t.content for t in MarkdownIt("commonmark").enable("table").parse(text)]
    plain = {re.sub(r"\\([\W_])", r"\1", cell).strip() for cell in cells}
    assert on_one_line(name) in plain


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markdown_in_a_model_card(name):
    card = model_card(provenance(name), {"a": 1})
    header, body = card.split("\n---\n", 1)
    front = yaml.safe_load(header.removeprefix("---\n"))
    assert front["model-index"][0]["name"].encode("utf-8", "replace") == name.encode(
        "utf-8", "replace"
    )
    assert kinds(body) == kinds(PLAIN_CARD.split("\n---\n", 1)[1])
    (config,) = [t.content for t in tokens(body) if t.type == "fence" and t.info == "yaml"]
    assert config.endswith("# y\n")
    card.encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_latex(name):
    text = as_latex(report(name))
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    firsts = [re.split(r" (?<!\\)& ?", row)[0] for row in rows]
    # Two hyphens would become a dash.
    shown = {untex(cell.removeprefix("{}").replace("-{}", "‐")) for cell in firsts}
    assert re.sub("-(?=-)", "‐", on_one_line(name)) in shown
    # A bracket or star after a line break is read as its argument.
    assert not [cell for cell in firsts if cell[:1] in ("[", "*")]
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) <= {
        "\n",
        "\u200d",
    }


class Tags(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.text.append(data)


ALL = " ".join(NAMES[:-1])


def test_names_are_no_html():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = as_html(report(ALL), gallery({"class": ALL, "id": ALL}))
    found, harmless = Tags(page), Tags(as_html(report("harmless"), gallery({"class": "harmless"})))
    # A chart has as many marks as its axes need, a head as many words as its name.
    drawn = ("use", "g", "path", "text", "span")
    tags = [[tag for tag in tags if tag not in drawn] for tags in (found.tags, harmless.tags)]
    assert tags[0] == tags[1]
    flat = " ".join(" ".join(found.text).split())
    assert " ".join("".join(c if c == "\n" else seen(c) for c in ALL).split()) in flat
    assert not [c for c in page if not (c.isprintable() or c in "\n\u200d\xa0")]


def test_names_are_drawn(tmp_path):
    count = len(NAMES) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "sheet.png", {ALL[:20]: torch.rand(count, 3, 8, 8)}, NAMES[:-1])
        for name in ("_$\\frac$\x00", "日本語\udcff"):
            assert report(name).plot_trade_off(tmp_path / "plot.png")
            with Image.open(tmp_path / "plot.png") as plot:
                assert plot.size == (640, 688)
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_a_name_with_an_underscore_has_its_place_in_the_legend(tmp_path):
    found = report("_hidden")
    (legend,) = trade_off(found).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [" _hidden!", "WiSE-FT 0.5", " _hidden"]


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_names_come_back_from_an_export(form, tmp_path):
    names = NAMES[:40:4]
    classifier = TimmClassifier("test_vit", False, names, image_size=48)
    save_classifier(classifier, tmp_path / "x.safetensors")
    export(str(tmp_path / "x.safetensors"), form, str(tmp_path / "out"))
    assert open_model(tmp_path / "out").class_names == names


def test_paths_that_are_no_utf8_are_kept_as_escapes(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    logits = torch.eye(3)
    answers = LabelRule(3).judge(logits, torch.arange(3), torch.ones(3).bool())
    with prediction_file(tmp_path / "x.parquet", [0, 1, 2]) as add:
        add(["a\udcff.png", "b", "ä"], answers, logits)
    assert pq.read_table(tmp_path / "x.parquet")["path"].to_pylist() == ["a\\udcff.png", "b", "ä"]
