"""Fronts against slow versions, closed forms, scipy and statsmodels."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from support.runs import QUICK, plant_run

from cfmask import ShiftReport, save_classifier
from cfmask.checkpoint import WEIGHTS
from cfmask.commands.eval_models import evaluate_run
from cfmask.evaluation.figures import Row
from cfmask.evaluation.fronts import (
    Envelope,
    Line,
    common_range,
    drawn_accuracies,
    fronts_of,
    gaps_against,
    holm,
    mean_gap,
    paired_t,
    percentile,
)
from cfmask.reporting.page import as_html

pytestmark = pytest.mark.drawn


def curves(count: int) -> list[np.ndarray]:
    """Walks that turn back, cross themselves, and have vertical pieces."""
    rng = np.random.default_rng(0)
    found = [0.5 + 0.04 * rng.standard_normal((11, 2)).cumsum(0) for _ in range(count)]
    found[0][3, 0] = found[0][4, 0]
    return [points + 0.5 - (points.max(0) + points.min(0)) / 2 for points in found]


def slow_height(points: np.ndarray, x: float) -> float:
    """The greatest height of the curve at x, piece by piece."""
    best = -np.inf
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 == x1 == x:
            best = max(best, y0, y1)
        elif min(x0, x1) <= x <= max(x0, x1) and x0 != x1:
            best = max(best, y0 + (x - x0) / (x1 - x0) * (y1 - y0))
    return best if best > -np.inf else np.nan


@pytest.mark.parametrize("points", curves(6))
def test_the_front_is_the_greatest_height_of_the_curve(points):
    front = Envelope(points)
    xs = np.concatenate(
        [np.linspace(points[:, 0].min() - 0.01, front.high + 0.01, 97), points[:, 0]]
    )
    expected = [slow_height(points, x) for x in xs]
    np.testing.assert_allclose(front.at(xs), expected, atol=1e-12)
    assert np.isnan(front.at([front.low - 1e-6, front.high + 1e-6])).all()


def test_a_gap_is_the_area_by_its_width():
    found = curves(8)
    for one, other in zip(found[::2], found[1::2]):
        first, second = Envelope(one), Envelope(other)
        shared = common_range([first, second])
        assert shared is not None
        xs = np.linspace(*shared, 20_001)[:-1] + (shared[1] - shared[0]) / 40_000
        slow = np.mean([slow_height(other, x) - slow_height(one, x) for x in xs[::20]])
        fine = (second.at(xs) - first.at(xs)).mean()
        gap = mean_gap(first, second, *shared)
        assert gap == pytest.approx(fine, abs=2e-4)
        assert gap == pytest.approx(slow, abs=5e-3)
        assert mean_gap(second, first, *shared) == pytest.approx(-gap)
        assert mean_gap(first, first, *shared) == 0


def test_the_gap_of_a_triangle_over_a_line_is_half_its_height():
    line = Envelope([(0.5, 0.2), (0.9, 0.2)])
    tent = Envelope([(0.4, 0.2), (0.6, 0.2), (0.7, 0.6), (0.8, 0.2), (0.95, 0.2)])
    shared = common_range([line, tent])
    assert shared == (0.5, 0.9)
    assert mean_gap(line, tent, *shared) == pytest.approx(0.5 * 0.2 * 0.4 / 0.4)
    assert common_range([line, Envelope([(0.1, 0), (0.5, 1)])]) is None


def test_the_interval_over_seeds_is_scipys():
    values = np.random.default_rng(1).normal(0.02, 0.02, 5)
    test = ttest_1samp(values, 0)
    ends = test.confidence_interval(0.95)
    assert paired_t(values) == pytest.approx((ends.low, ends.high, test.pvalue))
    assert paired_t([0.1, 0.1]) == (0.1, 0.1, 0.0)
    assert paired_t([0.0, 0.0]) == (0.0, 0.0, 1.0)


def test_holms_correction_is_that_of_statsmodels():
    rng = np.random.default_rng(2)
    for count in (1, 2, 7, 20):
        p_values = rng.random(count) ** 3
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_percentiles_are_those_of_the_draws():
    low, high, p_value = percentile(np.arange(-100, 900) / 1000)
    assert (low, high) == pytest.approx((-0.075025, 0.874025 - 0.00005), abs=1e-3)
    assert p_value == pytest.approx(2 * 102 / 1001)
    assert percentile(np.full(1000, 0.1))[2] == pytest.approx(2 / 1001)


def test_drawn_images_spread_as_a_slow_bootstrap_does():
    rng = np.random.default_rng(3)
    correct = rng.random((200, 3)) < [0.9, 0.6, 0.6]
    correct[:, 2] = correct[:, 1]
    drawn = drawn_accuracies(correct, np.random.default_rng(4), 4000)
    slow = np.array([correct[rng.integers(200, size=200)].mean(0) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(0), correct.mean(0), atol=2e-3)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(slow.T), rtol=0.12, atol=5e-5)
    # The same images for all models.
    assert np.array_equal(drawn[:, 1], drawn[:, 2])


def made_report(points: dict[str, tuple[float, float]]) -> ShiftReport:
    rows = [
        Row(model, shift, "accuracy", value)
        for model, (inside, outside) in points.items()
        for shift, value in (("id", inside), ("sketch", outside))
    ]
    sets = {"id": {"in_distribution": True}, "sketch": {}}
    return ShiftReport(rows, {"sets": sets}, "id")


def test_fronts_of_several_seeds_are_paired_and_averaged():
    rng = np.random.default_rng(5)
    points, lines = {}, []
    lifts = {"plain": 0.0, "masked": 0.03}
    noise = rng.normal(0, 0.01, 4)
    for name, lift in lifts.items():
        for seed in range(4):
            # Seeds differ more than methods do: only pairs tell.
            rows = [f"{name}-{seed} {alpha}" for alpha in range(3)]
            seen = 0.05 * seed + lift + noise[seed] * (name == "masked")
            for row, inside in zip(rows, (0.7, 0.8, 0.9)):
                points[row] = (inside, 0.9 - 0.5 * inside + seen)
            lines.append(Line(name, f"seed {seed}", rows))
    fronts, gaps = fronts_of(made_report(points), lines, {})
    assert [front.model for front in fronts] == ["plain", "masked"]
    expected = 0.03 + noise
    (gap,) = gaps
    ends = ttest_1samp(expected, 0)
    interval = ends.confidence_interval(0.95)
    assert (gap.first, gap.second, gap.how) == ("plain", "masked", "4 seeds, t")
    assert (gap.begins, gap.ends) == (0.7, 0.9)
    assert (gap.value, gap.low, gap.high) == pytest.approx(
        (expected.mean(), interval.low, interval.high)
    )
    assert gap.adjusted == gap.p_value == pytest.approx(ends.pvalue)
    plain = fronts[0]
    assert plain.levels == pytest.approx(np.linspace(0.7, 0.9, 11))
    heights = np.array([[0.9 - 0.5 * x + 0.05 * s for s in range(4)] for x in plain.levels])
    assert plain.values == pytest.approx(heights.mean(1))
    assert plain.sds == pytest.approx(heights.std(1, ddof=1))


def test_gaps_against_some_fronts_are_those_and_corrected_among_themselves():
    rng = np.random.default_rng(0)
    points, lines = {}, []
    for front, height in (("a", 0.0), ("b", 0.1), ("c", 0.02)):
        for seed in "012":
            models = [f"{front}{seed}{k}" for k in range(3)]
            for k, model in enumerate(models):
                points[model] = (0.5 + 0.2 * k, 0.5 + height + 0.02 * rng.standard_normal())
            lines.append(Line(front, seed, models))
    gaps = fronts_of(made_report(points), lines, {})[1]
    by_pair = {(g.first, g.second): g for g in gaps}
    kept = gaps_against(gaps, ["c"])
    assert [(g.first, g.second) for g in kept] == [("c", "a"), ("c", "b")]
    for gap in kept:
        whole = by_pair[gap.second, gap.first]
        assert (gap.value, gap.p_value) == (-whole.value, whole.p_value)
        assert (gap.low, gap.high) == (-whole.high, -whole.low)
        assert (gap.begins, gap.ends, gap.how) == (whole.begins, whole.ends, whole.how)
    expected = multipletests([g.p_value for g in kept], method="holm")[1]
    assert [g.adjusted for g in kept] == pytest.approx(list(expected))
    assert gaps_against(gaps, ["a", "b", "c"]) == gaps


def test_single_seeds_are_drawn_by_images():
    rng = np.random.default_rng(6)
    sizes = {"id": 400, "sketch": 300}
    hits, points, lines = {}, {}, []
    for name, lift in (("a", 0.0), ("b", 0.2), ("b again", 0.2)):
        rows = [f"{name} {k}" for k in range(3)]
        for k, row in enumerate(rows):
            shares = {"id": 0.6 + 0.15 * k, "sketch": 0.5 - 0.1 * k + lift}
            hits[row] = {
                s: rng.random(n) < shares[s] if name != "b again" else hits[f"b {k}"][s]
                for s, n in sizes.items()
            }
            points[row] = (hits[row]["id"].mean(), hits[row]["sketch"].mean())
        lines.append(Line(name, "", rows))
    report = made_report(points)
    fronts, gaps = fronts_of(report, lines, hits)
    assert [front.sds for front in fronts] == [[None] * len(front.levels) for front in fronts]
    by_pair = {(g.first, g.second): g for g in gaps}
    gap = by_pair["a", "b"]
    assert gap.how == "one seed, bootstrap"
    slow = []
    for _ in range(300):
        drawn = {s: rng.integers(n, size=n) for s, n in sizes.items()}
        pair = [
            Envelope([[hits[row][s][drawn[s]].mean() for s in sizes] for row in line.models])
            for line in lines[:2]
        ]
        slow.append(mean_gap(*pair, *common_range(pair)))
    reach = 1.96 * np.std(slow)
    assert gap.high - gap.low == pytest.approx(2 * reach, rel=0.2)
    assert gap.low < gap.value < gap.high
    same = by_pair["b", "b again"]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    adjusted = multipletests([g.p_value for g in gaps], method="holm")[1]
    assert [g.adjusted for g in gaps] == pytest.approx(adjusted)
    # Without answers there is no interval.
    bare = fronts_of(report, lines, {})[1]
    assert [(g.value, g.low, g.how) for g in bare] == [(g.value, None, "") for g in gaps]


def test_what_makes_no_fronts():
    points = {"a": (0.5, 0.5), "b": (0.6, 0.4), "c": (0.7, 0.4), "d": (0.8, 0.3)}
    report = made_report(points)
    assert fronts_of(report, [Line("x", "", ["a", "b"])], {}) == ([], [])
    apart = [Line("x", "", ["a", "b"]), Line("y", "", ["c", "d"])]
    fronts, gaps = fronts_of(report, apart, {})
    assert [front.levels for front in fronts] == [[], []]
    assert gaps == []
    lone = ShiftReport(report.rows, report.protocol, None)
    assert fronts_of(lone, apart, {}) == ([], [])


def test_two_runs_with_curves_have_fronts_in_every_form(tmp_path, _tiny_clip, capsys):
    runs, start = [tmp_path / "one", tmp_path / "other"], _tiny_clip.state_dict()
    for seed, run in enumerate(runs):
        tuned = copy.deepcopy(_tiny_clip)
        plant_run(run, tuned, seed)
        # Far enough from the start for accuracies to fall on the way.
        weights = {k: v + 5 * (v - start[k]) for k, v in tuned.state_dict().items()}
        tuned.load_state_dict(weights)
        save_classifier(tuned, run / WEIGHTS)
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": {"lr": seed}}))
    out = tmp_path / "out"
    evaluate_run([*map(str, runs), f"--out={out}", *QUICK, "--pictures=0", "--wise=0,0.25,...,1"])
    shown, report = capsys.readouterr().out, ShiftReport.load(out / "report.json")
    assert [front.model for front in report.fronts] == ["one", "other"]
    assert report.fronts[1].curves == [report.curves[1].models]
    pair = [
        Envelope([[report.value(m, s) for s in ("id", "sketch")] for m in front.curves[0]])
        for front in report.fronts
    ]
    (gap,) = report.gaps
    assert gap.value == pytest.approx(mean_gap(*pair, gap.begins, gap.ends))
    assert gap.how == "one seed, bootstrap"
    sign = "+" if gap.value >= 0 else "−"
    text = f"{sign}{abs(100 * gap.value):.1f}"
    page = (out / "report.html").read_text()
    for written in (shown, page, (out / "report.md").read_text(), (out / "report.tex").read_text()):
        assert "Area between two fronts" in written
        assert "Fronts: sketch at equal accuracy on id" in written
    assert text in shown
    assert text in page
    assert 'id="fronts"' in page
    assert (out / "fronts.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_without_long_curves_shows_no_fronts(tmp_path):
    report = made_report({"a": (0.5, 0.5), "b": (0.6, 0.4)})
    assert report.front_tables() == []
    assert not report.plot_fronts(tmp_path / "fronts.png")
    assert "fronts" not in as_html(report)


def test_the_tables_show_what_the_fronts_hold():
    points, lines = {}, []
    for name, lift in (("plain", 0.0), ("masked", 0.05)):
        for seed in range(2):
            rows = [f"{name} {seed} {k}" for k in range(2)]
            for row, inside in zip(rows, (0.7, 0.9)):
                points[row] = (inside, 0.4 + lift + 0.01 * seed * (name == "masked"))
            lines.append(Line(name, str(seed), rows))
    report = made_report(points)
    fronts, gaps = fronts_of(report, lines, {})
    whole = replace(report, fronts=fronts, gaps=gaps)
    heights, table = whole.front_tables()
    assert [[cell.text for cell in row[:2]] for row in heights.rows] == [
        ["plain", "40.0 ± 0.0"],
        ["masked", "45.5 ± 0.7"],
    ]
    (row,) = table.rows
    assert [cell.text for cell in row[:4]] == ["masked", "plain", "+5.5", f"{gaps[0].p_value:.3f}"]
    # Two seeds: 0.055 and 12.706 times 0.005.
    assert row[2].below == "−0.9 to +11.9"
    assert row[4].text == "70.0–90.0 %"
