from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from cfmask import InputError
from cfmask.evaluation.answers import Answers, LabelRule


def right(logits, labels, classes=None, accepts=None) -> torch.Tensor:
    return LabelRule(logits.shape[1], classes, accepts).judge(logits, labels).correct


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


def test_a_label_needs_a_right_class_that_competes():
    with pytest.raises(InputError, match=r"label 7 of the set x .* \[3, 4\]"):
        LabelRule(5, (0, 1), {6: (0, 4), 7: (3, 4)}, "x")


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


ACCEPTS = {7: (0,), 8: (1, 5), 9: (4, 3)}
OVERLAPPING = {7: (0,), 8: (1, 5), 9: (1, 0, 5)}


def random_answers(classes, accepts, count=200):
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(count, 6, generator=rng) * 3
    allowed = list(accepts or classes or range(6))
    labels = torch.tensor(allowed)[torch.randint(len(allowed), (count,), generator=rng)]
    return logits, labels, LabelRule(6, classes, accepts).judge(logits, labels)


@pytest.mark.parametrize("classes", [None, (0, 1, 3, 4, 5)])
@pytest.mark.parametrize("accepts", [None, ACCEPTS, OVERLAPPING])
def test_answers_are_what_a_plain_loop_finds(classes, accepts):
    logits, labels, got = random_answers(classes, accepts)
    allowed = list(classes or range(6))
    shared = accepts is OVERLAPPING
    for i, label in enumerate(labels.tolist()):
        row = logits[i].double().numpy()[allowed]
        p = dict(zip(allowed, softmax(row)))
        order = [allowed[j] for j in np.argsort(-row)]
        accepted = accepts[label] if accepts else (label,)
        assert got.best[i].tolist() == order[:5]
        assert got.correct[i] == (order[0] in accepted)
        assert got.top5[i] == any(k in accepted for k in order[:5])
        assert got.unrestricted[i] == (int(logits[i].argmax()) in accepted)
        assert got.nll[i] == pytest.approx(-np.log(sum(p[k] for k in accepted)), abs=1e-5)
        owners = [r for r in (accepts or {}).values() if order[0] in r]
        alone = (order[0],) if shared or not owners else owners[0]
        assert got.confidence[i] == pytest.approx(sum(p[k] for k in alone), abs=1e-6)
        assert got.max_logit[i] == logits[i].max()
    assert 0 < got.correct.sum() < got.top5.sum() <= 200


def test_nll_and_confidence_are_those_of_log_softmax():
    logits, labels, got = random_answers(None, None)
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(200), labels]
    assert got.nll.numpy() == pytest.approx(expected, abs=1e-5)


def test_the_confidence_of_large_logits_is_at_most_one():
    got = LabelRule(3).judge(torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([1]))
    assert got.confidence.tolist() == [1]
    assert got.nll.tolist() == [2e4]


def test_parts_join_to_the_whole():
    logits, labels, whole = random_answers(None, None)
    rule = LabelRule(6)
    parts = [rule.judge(logits[a:b], labels[a:b]) for a, b in ((0, 1), (1, 1), (1, 200))]
    joined = Answers.joined(parts)
    assert len(joined) == 200
    for name, value in whole.tensors().items():
        assert torch.equal(joined.tensors()[name], value), name
        assert joined.tensors()[name].dtype == value.dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    with pytest.raises(InputError, match="finite logits"):
        right(logits, torch.tensor([0, 0]))


def test_a_label_outside_the_head_is_named():
    with pytest.raises(InputError, match="3 classes of the head, but got 7"):
        right(torch.zeros(2, 3), torch.tensor([0, 7]))
