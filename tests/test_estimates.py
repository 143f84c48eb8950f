from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from cfmask.evaluation.estimates import combined, interval


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (1, 40), (17, 40), (9731, 10000)]
)
def test_an_interval_is_made_of_beta_quantiles(correct, total, confidence):
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, correct, total - correct + 1) if correct else 0
    high = beta.ppf(1 - tail, correct + 1, total - correct) if correct < total else 1
    assert interval(correct, total, confidence) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_a_perfect_score_has_a_closed_form():
    assert interval(50, 50) == pytest.approx((0.025 ** (1 / 50), 1), abs=1e-9)
    assert interval(0, 50) == pytest.approx((0, 1 - 0.025 ** (1 / 50)), abs=1e-9)


def mean(counts):
    return combined(counts, [1 / len(counts)] * len(counts))


def test_a_mean_interval_is_that_of_independent_binomials():
    counts = [(80, 100), (30, 60), (199, 200)]
    share = np.array([0.8, 0.5, 0.995])
    deviation = np.sqrt((share * (1 - share) / [100, 60, 200]).sum()) / 3
    expected = (share.mean(), share.mean() - 1.96 * deviation, share.mean() + 1.96 * deviation)
    assert mean(counts) == pytest.approx(expected, abs=1e-5)


def test_a_mean_weighs_sets_alike_whatever_their_size():
    assert mean([(1, 1), (0, 999)])[0] == 0.5


def test_a_mean_interval_stays_in_the_unit_range():
    assert mean([(99, 100), (100, 100)])[2] == 1
    assert mean([(1, 100), (0, 100)])[1] == 0


def test_the_mean_interval_of_one_set_is_near_the_exact_one():
    _, low, high = mean([(600, 1000)])
    assert (low, high) == pytest.approx(interval(600, 1000), abs=0.002)


def test_a_mean_interval_holds_the_truth_in_95_percent_of_experiments():
    rng = np.random.default_rng(0)
    truth, totals = np.array([0.9, 0.6, 0.35]), np.array([200, 400, 300])
    holds = 0
    for correct in rng.binomial(totals, truth, (2000, 3)):
        _, low, high = mean(list(zip(correct.tolist(), totals.tolist())))
        holds += low <= truth.mean() <= high
    assert 0.935 < holds / 2000 < 0.965


def test_a_combination_is_its_formula():
    value, low, high = combined([(30, 40), (10, 40)], [1.0, -1.0], 0.25)
    assert value == pytest.approx(0.75)
    reach = 1.96 * (0.75 * 0.25 / 40 * 2) ** 0.5
    assert (low, high) == pytest.approx((0.75 - reach, 0.75 + reach), abs=1e-4)
