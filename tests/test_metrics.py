from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta

from cfmask import InputError
from cfmask.metrics import combined, interval, right


def slow_right(logits, labels, classes) -> list[bool]:
    """Image by image: the first of the allowed classes with the largest logit is the label."""
    found = []
    for row, label in zip(logits.tolist(), labels.tolist()):
        best = None
        for k in range(len(row)):
            if k in classes and (best is None or row[k] > row[best]):
                best = k
        found.append(best == label)
    return found


@pytest.mark.parametrize("classes", [None, (0, 1, 2, 3, 4, 5), (1, 4), (5, 2, 0), (3,)])
def test_right_is_what_a_plain_loop_finds(classes):
    rng = torch.Generator().manual_seed(0)
    # Small whole numbers, so that there are many ties.
    logits = torch.randint(0, 3, (200, 6), generator=rng).float()
    allowed = range(6) if classes is None else classes
    labels = torch.tensor(sorted(allowed))[torch.randint(len(allowed), (200,), generator=rng)]
    got = right(logits, labels, classes)
    assert got.dtype == torch.bool
    assert got.tolist() == slow_right(logits, labels, allowed)


def test_a_class_outside_the_subset_does_not_compete():
    logits = torch.tensor([[1.0, 9.0, 2.0]])
    assert right(logits, torch.tensor([2])).tolist() == [False]
    assert right(logits, torch.tensor([2]), classes=(0, 2)).tolist() == [True]


@pytest.mark.parametrize(
    ("labels", "classes"), [([0, 3], None), ([-1, 0], None), ([0, 1], (0, 2)), ([0], ())]
)
def test_labels_outside_the_classes_are_refused(labels, classes):
    with pytest.raises(InputError, match="labels among"):
        right(torch.zeros(len(labels), 3), torch.tensor(labels), classes)


@pytest.mark.parametrize("classes", [None, (0, 1, 4, 5)])
def test_a_label_may_accept_several_classes_of_the_head(classes):
    rng = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (200, 6), generator=rng).float()
    labels = torch.randint(7, 10, (200,), generator=rng)
    accepts = {7: (0,), 8: (1, 5), 9: (4, 0, 5)}
    allowed = range(6) if classes is None else classes
    ways = [slow_right(logits, torch.full((200,), k), allowed) for k in range(6)]
    expected = [any(ways[k][i] for k in accepts[int(label)]) for i, label in enumerate(labels)]
    assert 0 < sum(expected) < 200
    assert right(logits, labels, classes, accepts).tolist() == expected


def test_a_label_that_accepts_nothing_is_refused():
    with pytest.raises(InputError, match="labels among"):
        right(torch.zeros(2, 3), torch.tensor([5, 6]), accepts={5: (0,)})


@pytest.mark.parametrize("classes", [(0, 3), (-1, 0)])
def test_classes_that_the_head_does_not_have_are_refused(classes):
    with pytest.raises(InputError, match="head"):
        right(torch.zeros(1, 3), torch.tensor([0]), classes)


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
