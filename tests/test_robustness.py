from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import linregress, norm

from cfmask import InputError
from cfmask.evaluation.figures import Fit, Row
from cfmask.evaluation.robustness import (
    BUILT_IN,
    check_fit,
    fits_of,
    lines_through,
    predicted,
    read_fits,
    robustness_rows,
)


def rows(family: str = "imagenet/", **accuracies: float) -> list[Row]:
    names = {family + name.replace("_", " "): value for name, value in accuracies.items()}
    return [
        Row("m", name, "accuracy", v, None, None, v - 0.02, v + 0.02) for name, v in names.items()
    ]


def test_the_built_in_lines_are_those_of_the_table():
    assert len(BUILT_IN) == 16
    (line,) = [f for f in BUILT_IN if (f.shift, f.transform) == ("imagenet/sketch", "logit")]
    assert (line.slope, line.intercept, line.r2) == (1.071, -2.370, 0.869)
    assert (line.low, line.high) == (0.565, 0.847)
    assert all(("not linear" in fit.note) == (fit.shift == "imagenet/a") for fit in BUILT_IN)
    # Both transforms of a pair of sets say nearly the same in the middle of the range.
    pairs = {(f.shift, f.reference): [] for f in BUILT_IN}
    for fit in BUILT_IN:
        pairs[fit.shift, fit.reference].append(predicted(fit, 0.76))
    for shift, (a, b) in pairs.items():
        assert a == pytest.approx(b, abs=0.03), shift


def test_the_residual_is_accuracy_above_the_line():
    found = robustness_rows(
        rows(val=0.7, sketch=0.45), fits_of("builtin", rows(val=0.7, sketch=0.45), "imagenet/val")
    )
    by_name = {row.metric: row for row in found}
    by_logit = by_name["effective_robustness_logit"]
    assert by_logit.value == pytest.approx(0.45 - expit(1.071 * logit(0.7) - 2.370))
    by_probit = by_name["effective_robustness_probit"]
    assert by_probit.value == pytest.approx(0.45 - norm.cdf(1.044 * norm.ppf(0.7) - 1.426))
    # Errors of both accuracies, the reference's by the slope of the line there.
    p = expit(1.071 * logit(0.7) - 2.370)
    slope = 1.071 * p * (1 - p) / (0.7 * 0.3)
    assert by_logit.high - by_logit.value == pytest.approx(np.hypot(0.02, 0.02 * slope), rel=1e-4)


def test_the_clean_images_of_a_sets_own_classes_come_first():
    own = rows(val=0.7, val_on_R_classes=0.9, r=0.6)
    fits = fits_of("builtin", own, "imagenet/val")
    assert {fit.reference for fit in fits} == {"imagenet/val on R classes"}
    assert len(robustness_rows(own, fits)) == 2
    whole = fits_of("builtin", rows(val=0.7, r=0.6), "imagenet/val")
    assert {fit.reference for fit in whole} == {"imagenet/val"}


def test_a_model_beyond_the_models_of_the_line_is_marked():
    def note(value: float) -> str:
        own = rows(val=value, a=0.5)
        return robustness_rows(own, fits_of("builtin", own, "imagenet/val"))[0].note

    assert "EXTRAPOLATED beyond 56.5–84.7 %" in note(0.86)
    assert "EXTRAPOLATED" in note(0.5)
    assert "EXTRAPOLATED" not in note(0.7)
    assert "not linear" in note(0.7)
    assert "against imagenet/val" in note(0.7)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_accuracy_of_nothing_or_all_has_a_prediction(value):
    (row, _) = robustness_rows(
        rows(val=value, v2=0.5), fits_of("builtin", rows(val=value, v2=0.5), "imagenet/val")
    )
    assert row.value == pytest.approx(0.5 - value, abs=1e-3)


def accuracies() -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    inside = rng.uniform(0.5, 0.9, 8)
    outside = expit(1.3 * logit(inside) - 1 + 0.1 * rng.standard_normal(8))
    return {f"m{i}": {"id": a, "x": b} for i, (a, b) in enumerate(zip(inside, outside))}


def test_a_line_through_models_is_that_of_scipy():
    models = accuracies()
    fits = {fit.transform: fit for fit in lines_through(models, "id", "here")}
    for transform, make in (("logit", logit), ("probit", norm.ppf)):
        xs, ys = (make([own[name] for own in models.values()]) for name in ("id", "x"))
        expected = linregress(xs, ys)
        fit = fits[transform]
        assert fit.slope == pytest.approx(expected.slope)
        assert fit.intercept == pytest.approx(expected.intercept)
        assert fit.r2 == pytest.approx(expected.rvalue**2)
        assert (fit.low, fit.high) == pytest.approx(
            (min(own["id"] for own in models.values()), max(own["id"] for own in models.values()))
        )
        assert "through 8 models" in fit.note


def test_lines_through_the_models_of_a_report_leave_residuals_around_zero():
    own = [Row(m, s, "accuracy", v) for m, of in accuracies().items() for s, v in of.items()]
    found = robustness_rows(own, fits_of("models", own, "id"))
    residuals = [row.value for row in found if row.metric == "effective_robustness_logit"]
    assert len(residuals) == 8
    assert abs(np.mean(residuals)) < 0.01 < max(map(abs, residuals))


def test_a_line_needs_three_models_and_a_reference():
    two = dict(list(accuracies().items())[:2])
    with pytest.raises(InputError, match="at least 3 models"):
        lines_through(two, "id", "")
    with pytest.raises(InputError, match="at least 3 models"):
        lines_through({"a": {"id": 0.5}, "b": {"id": 0.5}, "c": {"id": 0.5}}, "id", "")
    with pytest.raises(InputError, match="reference"):
        lines_through(accuracies(), None, "")


def test_models_that_turn_out_equally_good_have_a_report_without_lines():
    own = [Row(m, s, "accuracy", 0.5) for m in "abc" for s in ("id", "x")]
    with pytest.warns(UserWarning, match="Expected at least 3 models with different accuracies"):
        assert fits_of("models", own, "id") == []


def test_lines_are_read_from_a_file(tmp_path):
    path = tmp_path / "fits.csv"
    path.write_text(
        "shift,reference,transform,slope,intercept,low,high,source\n"
        "x,id,logit,1.5,-0.25,0.4,0.8,a paper\n"
        "y,id,probit,1,0,,,\n"
    )
    assert read_fits(path, None) == [
        Fit("x", "id", "logit", 1.5, -0.25, None, 0.4, 0.8, "a paper"),
        Fit("y", "id", "probit", 1, 0),
    ]
    own = rows("", id=0.5, x=0.5)
    (row,) = robustness_rows(own, fits_of(str(path), own, "id"))
    assert row.value == pytest.approx(0.5 - expit(-0.25))


def test_a_file_of_accuracies_gives_the_lines_through_them(tmp_path):
    models = accuracies()
    lines = ["model,id,x", *(f"{m},{own['id']!r},{own['x']!r}" for m, own in models.items())]
    path = tmp_path / "testbed.csv"
    path.write_text("\n".join(lines).replace("np.float64(", "").replace(")", ""))
    assert read_fits(path, "id") == lines_through(models, "id", str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none"),
        ("shift,slope\nx,1\n", "columns"),
        ("shift,reference,transform,slope,intercept\nx,id,log,1,0\n", "logit nor probit"),
        ("shift,reference,transform,slope,intercept\nx,id,logit,much,0\n", "much"),
        ("model,id,x\nm,0.5,high\n", "high"),
        ("model,id,x\nm,58.6,0.4\n", "58.6 on id"),
        ("model,id,x\nm,0.5,nan\n", "nan on x"),
        ("model,id,x\nm,0.5,0.4\nm,0.6,0.4\n", "m twice"),
        ("model,id,x\nm,0.5,0.4,0.3\n", "Cannot read|at least 3"),
        ("shift,reference,transform,slope,intercept\nx,id,logit,inf,0\n", "slope is inf"),
        ("shift,reference,transform,slope,intercept\nx,id\n", "logit nor probit"),
        ('model,id,x\nm,"0.5,0.4\n', "Cannot read"),
        ("a" * 200_000, "Cannot read"),
        ("model,id,x\nm,0.5,0.4\n", "at least 3 models"),
    ],
)
def test_a_file_without_lines_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "fits.csv").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_fits(tmp_path / "fits.csv", "id")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        fits_of(str(tmp_path / "none.csv"), rows(id=0.5), "id")


def test_no_line_is_drawn_where_none_is_wanted():
    assert fits_of("none", rows(val=0.7, v2=0.6), "imagenet/val") == []
    assert fits_of("builtin", rows(id=0.7, sketch=0.6), "id") == []


@pytest.mark.parametrize("family", ["", "folders/", "digits/", "imagenet-made/"])
def test_only_sets_of_imagenet_itself_have_the_built_in_lines(family):
    own = rows(family, val=0.7, sketch=0.5, a=0.1, r=0.6, v2=0.6)
    assert fits_of("builtin", own, f"{family}val") == []


@pytest.mark.parametrize(
    "text",
    [
        "shift,reference,transform,slope,intercept\nx,night/id,logit,1,0\n",
        "model,night/id,x\na,0.5,0.4\nb,0.6,0.5\nc,0.7,0.6\n",
    ],
)
def test_a_name_without_its_family_is_no_name_of_a_set(tmp_path, text):
    path = tmp_path / "fits.csv"
    path.write_text(text)
    sets = ["night/id", "night/x"]
    with pytest.raises(InputError, match="night/x for x"):
        check_fit(str(path), 1, sets, "night/id")
    path.write_text(text.replace("x", "night/x"))
    check_fit(str(path), 1, sets, "night/id")
    path.write_text(text.replace("x", "elsewhere/x"))
    check_fit(str(path), 1, sets, "night/id")


@pytest.mark.parametrize("transform", ["logit", "probit"])
@pytest.mark.parametrize(("slope", "expected"), [(1e6, 1), (-1e6, 0)])
def test_a_steep_line_ends_at_nothing_or_all(transform, slope, expected):
    fit = Fit("x", "id", transform, slope, 0)
    assert predicted(fit, 0.9) == pytest.approx(expected, abs=1e-9)
