from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import hmean, mannwhitneyu
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from support.evaluation import CLASSES, ReadsTheLabel, Sees, linear, models, painted, random_images
from torchmetrics.functional.classification import multiclass_calibration_error

from cfmask import InputError, ShiftReport, evaluate
from cfmask.evaluation.estimates import (
    calibration_bins,
    expected_calibration_error,
    harmonic,
    mcnemar,
    mean_with_interval,
    paired_difference,
    selective,
)
from cfmask.evaluation.metrics import Judged, Metric
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import tables
from cfmask.shift import Shift


def scores(count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidences in [0, 1] and answers that are right a little less often."""
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(count, generator=rng)
    return confidence, torch.rand(count, generator=rng) < confidence**2


def test_calibration_error_is_that_of_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(700, 4, generator=rng)).softmax(1)
    labels = torch.randint(4, (700,), generator=rng)
    bins = calibration_bins(p.amax(1), p.argmax(1) == labels)
    expected = multiclass_calibration_error(p, labels, num_classes=4, n_bins=15, norm="l1")
    assert expected_calibration_error(bins) == pytest.approx(float(expected), abs=1e-6)
    assert expected > 0.1
    assert sum(bins["count"]) == 700


def test_bins_are_what_a_plain_loop_finds():
    confidence, correct = scores()
    bins = calibration_bins(confidence, correct)
    for i in range(15):
        inside = [j for j, c in enumerate(confidence.tolist()) if i / 15 < c <= (i + 1) / 15]
        assert bins["count"][i] == len(inside)
        assert bins["correct"][i] == int(correct[inside].sum())
        assert bins["confidence"][i] == pytest.approx(float(confidence[inside].sum()), abs=1e-4)


def test_confidences_at_the_edges_have_a_bin():
    bins = calibration_bins(torch.tensor([0.0, 1 / 15, 1.0]), torch.tensor([True, False, True]))
    assert bins["count"] == [2, *[0] * 13, 1]
    assert expected_calibration_error(bins) == pytest.approx((1 - 1 / 15) / 3)


def test_selective_accuracy_leaves_out_the_least_confident_tenth():
    confidence, correct = scores()
    kept = np.argsort(-confidence.numpy())[:450]
    assert selective(confidence, correct) == (int(correct.numpy()[kept].sum()), 450)


def test_selective_accuracy_does_not_depend_on_the_order():
    confidence = torch.full((20,), 0.5)
    correct = torch.arange(20) < 7
    assert selective(confidence, correct) == selective(confidence, correct.flip(0)) == (5, 18)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 9), (25, 25), (40, 12), (0, 60)])
def test_mcnemar_is_that_of_statsmodels(lost, won):
    expected = statsmodels_mcnemar([[100, lost], [won, 50]], exact=True).pvalue
    assert mcnemar(lost, won) == pytest.approx(min(1.0, expected))


def test_a_paired_interval_holds_the_truth_in_95_percent_of_experiments():
    rng = np.random.default_rng(0)
    lost, won, total = 0.08, 0.15, 150
    cells = rng.multinomial(total, [lost, won, 1 - lost - won], 2000)
    holds = 0
    for a, b, _ in cells.tolist():
        value, low, high = paired_difference(a, b, total)
        assert value == (b - a) / total
        holds += low <= won - lost <= high
    assert 0.935 < holds / 2000 < 0.97


def test_a_paired_interval_of_equal_models_is_around_zero():
    value, low, high = paired_difference(0, 0, 100)
    assert value == 0
    assert low == pytest.approx(-high)
    assert 0 < high < 0.05


def test_a_mean_has_the_normal_interval_of_numpy():
    values = scores()[0]
    mean, low, high = mean_with_interval(values)
    error = np.std(values.double().numpy(), ddof=1) / np.sqrt(500)
    assert (mean, low, high) == pytest.approx(
        (mean, mean - 1.96 * error, mean + 1.96 * error), 1e-4
    )
    assert mean == pytest.approx(values.double().mean().item())
    assert mean_with_interval(values[:1])[1:] == (-math.inf, math.inf)


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.5), (0.3, 0.3), (0.9, 0.001)])
def test_a_harmonic_mean_is_that_of_scipy_and_its_interval_that_of_trials(a, b):
    spread = 0.4 * min(a, b)
    got = harmonic((a, a - spread, a + spread), (b, b - spread / 2, b + spread / 2))
    assert got[0] == pytest.approx(hmean([a, b]))
    rng = np.random.default_rng(0)
    x = a + spread / 1.96 * rng.standard_normal(100_000)
    y = b + spread / 2 / 1.96 * rng.standard_normal(100_000)
    deviation = np.std(2 * x * y / (x + y))
    assert got[2] - got[0] == pytest.approx(1.96 * deviation, rel=0.1)


def test_a_harmonic_mean_with_nothing_right_is_zero():
    value, low, high = harmonic((0.0, 0.0, 0.1), (0.0, 0.0, 0.2))
    assert (value, low) == (0, 0)
    assert 0 < high < 0.2
    assert harmonic((0.5, 0.4, 0.6), (0.0, 0.0, 0.1))[0] == 0


def drawn(seed: int = 3) -> Sees:
    torch.manual_seed(seed)
    model = linear()
    torch.nn.init.normal_(model.encoder[1].weight)
    return model


def test_all_measures_of_an_evaluation_are_those_of_numpy():
    model, data = drawn(), random_images(203)
    groups = tuple((torch.arange(203) % 3).tolist())
    names = ("north", "south", "east")
    shift = Shift("x", lambda look: data, groups=groups, group_names=names)
    report = evaluate({"m": model}, [shift], batch_size=60)
    with torch.no_grad():
        logits = model(data.images.float() / 255).double()
    labels, p = data.labels, logits.softmax(1)
    correct = (logits.argmax(1) == labels).numpy()
    by_class = [correct[labels == k].mean() for k in range(CLASSES)]
    by_group = [correct[np.array(groups) == g].mean() for g in range(3)]
    expected = {
        "accuracy": correct.mean(),
        "nll": -p.log()[torch.arange(203), labels].mean(),
        "ece": multiclass_calibration_error(p, labels, num_classes=CLASSES, n_bins=15),
        "class_mean": np.mean(by_class),
        "worst_class": min(by_class),
        "worst_group": min(by_group),
        "group_mean": np.mean(by_group),
        "disparity": max(by_group) - min(by_group),
        "selective_accuracy": correct[np.argsort(-p.amax(1).numpy())[:183]].mean(),
    }
    found = {row.metric: row.value for row in report.rows}
    assert found == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-5
    )
    worst = report.row("m", "x", "worst_group")
    assert worst.note == names[int(np.argmin(by_group))]
    assert report.row("m", "x", "worst_class").note == str(int(np.argmin(by_class)))
    assert report.details["m"]["x"]["groups"]["total"] == [68, 68, 67]
    assert report.details["m"]["x"]["classes"]["names"] == [str(k) for k in range(CLASSES)]
    assert found["worst_class"] < found["accuracy"] < 1


def test_a_restricted_set_has_both_accuracies():
    data = random_images(40)
    data.labels %= 2
    shift = Shift("x", lambda look: data, classes=(0, 1))
    report = evaluate({"m": drawn()}, [shift])
    with torch.no_grad():
        logits = drawn()(data.images.float() / 255)
    whole = (logits.argmax(1) == data.labels).double().mean()
    part = (logits[:, :2].argmax(1) == data.labels).double().mean()
    assert report.value("m", "x") == part > whole
    assert report.value("m", "x", "accuracy_unrestricted") == whole
    assert not report.of("top5")


def test_classes_of_the_set_are_counted_where_they_have_several_of_the_heads():
    data = random_images(30)
    data.images[:, 0, 0, 0] = data.labels
    data.labels = 100 + data.labels // 3
    model = {"m": Sees(ReadsTheLabel(True))}
    shift = Shift("x", lambda look: data, accepts={100: (2, 0), 101: (3, 4)})
    classes = evaluate(model, [shift]).details["m"]["x"]["classes"]
    assert classes["names"] == ["2", "3"]
    assert sum(classes["total"]) == 30
    # Where a class is right for several labels there are no classes to count by.
    shared = Shift("x", lambda look: data, accepts={100: (2, 0), 101: (3, 0)})
    report = evaluate(model, [shared])
    assert set(report.details["m"]["x"]) == {"bins"}
    assert not report.of("class_mean")


def test_every_model_is_compared_with_the_first_on_the_same_images():
    shifts = [painted("id", 53, 4, reference=True), painted("sketch", 20, 20)]
    report = evaluate({**models(), "good too": Sees(ReadsTheLabel(False))}, shifts)
    found = [(d.first, d.second, d.shift, d.only_first, d.only_second) for d in report.differences]
    assert found == [
        ("good", "misled", "id", 4, 0),
        ("good", "misled", "sketch", 20, 0),
        ("good", "good too", "id", 0, 0),
        ("good", "good too", "sketch", 0, 0),
    ]
    assert report.differences[0].difference == -4 / 53
    assert report.differences[0].p_value == pytest.approx(2 / 2**4)
    assert report.differences[1].high < 0


def test_tuned_models_are_compared_with_their_own_starting_points_as_well():
    other = Sees(ReadsTheLabel(False))
    other.encoder.scale.data.fill_(-1)
    four = {**models(), "start": other, "tuned": Sees(ReadsTheLabel(False))}
    starts = {"misled": "good", "tuned": "start"}
    report = evaluate(four, [painted("x", 40, 10)], starts=starts)
    found = [(d.first, d.second, d.only_first, d.only_second) for d in report.differences]
    assert found == [
        ("good", "misled", 10, 0),
        ("good", "start", 40, 0),
        ("good", "tuned", 0, 0),
        ("start", "tuned", 0, 40),
    ]
    baselines = {"good": None, "misled": "good", "start": "good", "tuned": "start"}
    assert {model: report.baseline(model) for model in four} == baselines
    marked = {row.model for row in report.of("accuracy") if report.differs(row)}
    assert marked == {"misled", "start", "tuned"}
    assert report.against() == "differs from good (in misled, start) or start (in tuned)"
    page = as_html(report)
    assert "Accuracy against good or start on the same images" in page
    assert "+100.0 points for tuned against start" in page
    assert "<b>tuned</b> against start: x 0.0 → 100.0 %" in page


def test_shift_sets_are_told_from_the_reference_by_their_maximum_logit():
    model = drawn()
    inside, outside = random_images(50), random_images(40, seed=1)
    outside.images //= 4
    shifts = [Shift("id", lambda look: inside, True), Shift("dark", lambda look: outside)]
    report = evaluate({"m": model}, shifts)
    with torch.no_grad():
        tops = [model(d.images.float() / 255).amax(1).numpy() for d in (inside, outside)]
    expected = mannwhitneyu(*tops).statistic / 2000
    assert report.value("m", "dark", "auroc_max_logit") == pytest.approx(expected)
    assert {row.shift for row in report.of("auroc_max_logit")} == {"dark"}


def test_parts_of_a_collection_are_in_no_mean():
    from dataclasses import replace

    sizes = {"v2": (10, 5), "sketch": (20, 4), "noise 1": (10, 10), "noise 2": (10, 10)}
    shifts = [painted("id", 40, 10, reference=True)]
    for name, size in sizes.items():
        shift = painted(name, *size)
        shifts.append(replace(shift, part_of="c") if "noise" in name else shift)
    report = evaluate({"m": Sees(ReadsTheLabel(True))}, shifts)
    assert report.value("m", "mean of shifts") == pytest.approx((0.5 + 0.8) / 2)
    assert report.value("m", "harmonic mean") == pytest.approx(hmean([0.75, 0.65]))
    assert report.columns() == ["id", "v2", "sketch", "mean of shifts", "harmonic mean"]


def test_the_first_five_count_where_more_classes_compete():
    rng = torch.Generator().manual_seed(0)
    data = random_images(60)
    data.labels = torch.randint(7, (60,), generator=rng)
    torch.manual_seed(0)
    model = linear(7)
    model.class_names = tuple("abcdefg")
    report = evaluate({"m": model}, [Shift("x", lambda look: data)])
    with torch.no_grad():
        order = model(data.images.float() / 255).numpy().argsort(1)[:, -5:]
    expected = (order == data.labels.numpy()[:, None]).any(1).sum()
    assert report.row("m", "x", "top5").correct == expected < 60


def brier(judged: Judged) -> float:
    """Mean squared distance of the probabilities from the truth."""
    assert judged.answers.logits is not None
    p = judged.answers.logits.double().softmax(1)
    truth = torch.nn.functional.one_hot(judged.answers.labels, p.shape[1])
    return float((p - truth).square().sum(1).mean())


BRIER = Metric("Brier score", brier, unit="", scale=1, digits=2, better=-1, needs_logits=True)


def test_a_metric_of_ones_own_is_one_entry(tmp_path):
    data, shown = random_images(70), {"a": drawn(), "b": drawn(4)}
    shifts = [
        Shift("id", lambda look: data, True),
        Shift("few", lambda look: data, classes=(0, 1, 2, 3, 4)),
    ]

    def measured(store):
        return evaluate(shown, shifts, 32, metrics={"brier": BRIER}, store=store)

    report = measured(tmp_path / "answers")
    with torch.no_grad():
        p = drawn()(data.images.float() / 255).double().softmax(1).numpy()
    expected = ((p - np.eye(CLASSES)[data.labels.numpy()]) ** 2).sum(1).mean()
    assert report.value("a", "id", "brier") == pytest.approx(expected, abs=1e-6)
    # A report that is read again knows how it is shown, and which end of it is better.
    report.save(tmp_path / "report.json")
    again = ShiftReport.load(tmp_path / "report.json")
    table = next(table for table in tables(again) if table.name == "brier")
    assert (table.title, table.rows[0][1].text) == ("Brier score", f"{expected:.2f}")
    assert table.rows[0][1].best == (again.value("b", "id", "brier") > expected)
    # Answers that an evaluation without logits has kept are not enough.
    evaluate(shown, shifts, 32, store=tmp_path / "plain")
    assert measured(tmp_path / "plain").value("a", "id", "brier") == pytest.approx(expected)
    assert measured(tmp_path / "answers").run["images"] == 0


def test_a_metric_takes_no_name_of_another():
    with pytest.raises(InputError, match="ece"):
        evaluate(
            {"a": drawn()}, [Shift("id", lambda look: random_images(5))], metrics={"ece": BRIER}
        )
