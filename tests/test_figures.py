from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import NormalDist
from xml.etree import ElementTree

import pytest
from support.reports import whole_report

from cfmask import ShiftReport
from cfmask.evaluation.figures import Curve, Fit, Row
from cfmask.reporting.charts import (
    LEAST_IN_BIN,
    drawn_models,
    reliability,
    scatter,
    trade_off,
    training,
    wise_curve,
)
from cfmask.reporting.svg import LIGHT

pytestmark = pytest.mark.drawn

TRANSFORMS = {
    "linear": lambda p: p,
    "logit": lambda p: math.log(p / (1 - p)),
    "probit": NormalDist().inv_cdf,
}
MODELS = {"a": (0.6, 0.3), "b": (0.7, 0.5), "c": (0.9, 0.85)}
STYLES = {"a": 0, "b": 1, "c": 2}


def report(**parts) -> ShiftReport:
    rows = [
        Row(model, shift, "accuracy", value, low=value - 0.05, high=value + 0.05)
        for model, pair in MODELS.items()
        for shift, value in zip(("id", "x"), pair)
    ]
    return ShiftReport(rows, {"sets": {"id": {"in_distribution": True}, "x": {}}}, "id", **parts)


def markers(svg: str, colour: str) -> list[tuple[float, float]]:
    """Places of the markers of a colour, in the order of the picture."""
    found = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--{colour}\)', svg)
    return [(float(x), float(y)) for x, y in found]


def paths(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Corners of the open lines of a colour."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke[^"]*--{colour}\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", d)] for d in found]


def distance(point: tuple[float, float], line: list[tuple[float, float]]) -> float:
    """Of a point to the straight line through both ends of a path."""
    (x0, y0), (x1, y1), (x, y) = line[0], line[-1], point
    return abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / math.hypot(x1 - x0, y1 - y0)


@pytest.mark.parametrize("scale", TRANSFORMS)
def test_points_stand_where_their_figures_are(scale):
    fit = None if scale == "linear" else Fit("x", "id", scale, 1.0, 0.0)
    svg = scatter(report(), "x", STYLES, fit)
    places = [markers(svg, f"series-{i}")[0] for i in range(3)]
    for axis, sign in ((0, 1), (1, -1)):
        values = [TRANSFORMS[scale](pair[axis]) for pair in MODELS.values()]
        drawn = [place[axis] for place in places]
        expected = (values[1] - values[0]) / (values[2] - values[0])
        assert (drawn[1] - drawn[0]) / (drawn[2] - drawn[0]) == pytest.approx(expected, abs=1e-3)
        assert sign * drawn[0] < sign * drawn[2]


@pytest.mark.parametrize("scale", ["logit", "probit"])
def test_a_model_of_the_fit_lies_on_its_line(scale):
    forward = TRANSFORMS[scale]
    slope = (forward(0.85) - forward(0.3)) / (forward(0.9) - forward(0.6))
    fit = Fit("x", "id", scale, slope, forward(0.3) - slope * forward(0.6), low=0.65, high=0.8)
    svg = scatter(report(), "x", STYLES, fit)
    lines = paths(svg, "muted")
    through = [
        line
        for line in lines
        if all(distance(markers(svg, f"series-{i}")[0], line) < 0.3 for i in (0, 2))
    ]
    # The dashed line reaches to the edges; the full one as far as the models of the fit do.
    assert len(through) == 2
    assert distance(markers(svg, "series-1")[0], through[0]) > 3
    lengths = sorted(line[-1][0] - line[0][0] for line in through)
    assert 0 < lengths[0] < 0.5 * lengths[1]


def test_the_line_of_equal_accuracy_goes_from_corner_to_corner():
    svg = scatter(report(), "x", STYLES)
    (frame,) = re.findall(r"<clipPath.*?<rect ([^>]*)/>", svg)
    box = {k: float(v) for k, v in re.findall(r'(\w+)="([\d.]+)"', frame)}
    assert box["width"] == pytest.approx(box["height"], abs=0.1)
    corners = [(box["x"], box["y"] + box["height"]), (box["x"] + box["width"], box["y"])]
    lines = paths(svg, "muted")
    assert any(all(math.dist(*pair) < 0.1 for pair in zip(line, corners)) for line in lines)


def test_models_without_a_style_are_dots_on_the_path_of_their_curve():
    svg = scatter(report(curves=[Curve([0, 0.5, 1], list("abc"))]), "x", {"a": 0, "c": 1})
    dots = markers(svg, "muted")
    ends = markers(svg, "series-0") + markers(svg, "series-1")
    assert len(dots) == 1
    assert any({*dots, *ends} == set(line) for line in paths(svg, "muted"))


def test_there_is_no_chart_without_a_reference_or_a_figure():
    rows = report().rows
    assert scatter(ShiftReport(rows, {}, None), "x", STYLES) == ""
    assert scatter(report(), "y", STYLES) == ""
    assert reliability(report(), "x", STYLES) == ""


def test_a_curve_has_a_point_for_each_alpha_and_a_line_at_the_chosen_one():
    curve = Curve([0.0, 0.5, 1.0], list("abc"), "b", "id")
    svg = wise_curve(report(), curve, "x")
    inside, under = markers(svg, "series-0"), markers(svg, "series-1")
    assert len(inside) == len(under) == 3
    for drawn, axis in ((inside, 0), (under, 1)):
        values = [pair[axis] for pair in MODELS.values()]
        share = (values[1] - values[0]) / (values[2] - values[0])
        heights = [y for _, y in drawn]
        assert (heights[1] - heights[0]) / (heights[2] - heights[0]) == pytest.approx(share, 1e-3)
    (line,) = (line for line in paths(svg, "ink") if len(line) == 2)
    assert line[0][0] == line[1][0] == pytest.approx(inside[1][0], abs=0.01)
    assert not paths(wise_curve(report(), Curve([0.0, 1.0], ["a", "c"]), None), "ink")


def test_a_reliability_diagram_leaves_small_bins_out():
    whole = whole_report()
    svg = reliability(whole, "id", {"tuned": 2})
    bins = whole.details["tuned"]["id"]["bins"]
    places = markers(svg, "series-2")
    assert len(places) == sum(count >= LEAST_IN_BIN for count in bins["count"]) == 13
    (frame,) = re.findall(r"<clipPath.*?<rect ([^>]*)/>", svg)
    box = {k: float(v) for k, v in re.findall(r'(\w+)="([\d.]+)"', frame)}
    for (x, y), said, hits in zip(places, bins["confidence"][2:], bins["correct"][2:]):
        assert (x - box["x"]) / box["width"] == pytest.approx(said / 20, abs=0.002)
        assert 1 - (y - box["y"]) / box["height"] == pytest.approx(hits / 20, abs=0.002)


def test_a_picture_is_whole_and_takes_its_colours_from_the_page():
    svg = scatter(whole_report(), "v2", {"tuned": 1}, whole_report().fits[0])
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert not re.findall(r": #\w+", svg)
    assert "font-family" not in svg and "http" not in svg
    assert 'aria-label="Accuracy on id against accuracy on v2"' in svg


@pytest.mark.parametrize("scale", TRANSFORMS)
def test_markers_at_the_edge_are_whole(scale):
    rows = [Row("a", s, "accuracy", 1.0, low=0.9, high=1.0) for s in ("id", "x")]
    rows += [Row("b", s, "accuracy", 0.7, low=0.6, high=0.8) for s in ("id", "x")]
    fit = None if scale == "linear" else Fit("x", "id", scale, 1.0, 0.0)
    perfect = ShiftReport(rows, report().protocol, "id")
    svg = scatter(perfect, "x", STYLES, fit)
    ((x, y),) = markers(svg, "series-0")
    (frame,) = re.findall(r"<clipPath.*?<rect ([^>]*)/>", svg)
    box = {k: float(v) for k, v in re.findall(r'(\w+)="([\d.]+)"', frame)}
    assert box["x"] < x <= box["x"] + box["width"] + 0.01
    assert box["y"] - 0.01 <= y < box["y"] + box["height"]
    # What is at the edge is not cut there, and has its place in the picture.
    for colour in ("series-0", "series-1"):
        (group,) = re.findall(rf'<g([^>]*)> *<use [^>]*style="fill: var\(--{colour}\)', svg)
        assert "clip-path" not in group
    (wide,) = re.findall(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    assert y > 3 and x < float(wide) - 2


def test_a_curve_at_the_top_is_whole_and_ends_there():
    rows = [Row(m, "id", "accuracy", v) for m, v in zip("abc", (0.9, 1.0, 1.0))]
    perfect = ShiftReport(rows, report().protocol, "id")
    svg = wise_curve(perfect, Curve([0.0, 0.5, 1.0], list("abc"), "b", "id"), None)
    (group,) = re.findall(r'<g([^>]*)> *<use [^>]*style="fill: var\(--series-0\)', svg)
    assert "clip-path" not in group
    ticks = [float(t) for t in re.findall(r">([\d.]+)</text>", svg)]
    assert max(ticks) == 100


def test_a_line_of_training_goes_through_what_was_logged():
    logged = {"total": [[0, 2.0], [1, 1.0], [3, 0.5]], "task": [[0, 1.0], [3, 0.0]]}
    svg = training(logged, "Loss")
    first, second = markers(svg, "series-0"), markers(svg, "series-1")
    assert len(first) == 3 and len(second) == 2
    (x0, y0), (x1, y1), (x3, y3) = first
    assert (x1 - x0) / (x3 - x0) == pytest.approx(1 / 3, abs=1e-3)
    assert (y1 - y0) / (y3 - y0) == pytest.approx(1 / 1.5, abs=1e-3)
    assert second[0] == pytest.approx((x0, y1), abs=1e-3)
    many = training({"total": [[k, k] for k in range(200)]}, "Loss")
    assert not markers(many, "series-0") and paths(many, "series-0")


def test_the_picture_of_the_trade_off_is_the_chart_of_the_page(tmp_path):
    whole = whole_report()
    figure = trade_off(whole)
    (axes,) = figure.axes
    svg = scatter(whole, "mean of shifts", drawn_models(whole))
    assert f"{axes.get_xlabel()}</text>" in svg and f"{axes.get_ylabel()}</text>" in svg
    cells = {(r.model, r.shift): r.value for r in whole.of("accuracy")}
    lines = [line for line in axes.lines if line.get_marker() != "None" and len(line.get_xdata())]
    drawn = [tuple(line.get_xydata()[0]) for line in lines]
    for model in whole.models:
        place = 100 * cells[model, "id"], 100 * cells[model, "mean of shifts"]
        assert any(p == pytest.approx(place) for p in drawn)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == whole.models
    # Its colours are real ones, those of the page by day.
    layout = (Path(__file__).parents[1] / "cfmask/reporting/style.css").read_text()
    for number, colour in enumerate(LIGHT.series):
        assert f"--series-{number}: {colour};" in layout
