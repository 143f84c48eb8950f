from __future__ import annotations

import numpy as np
import pytest
import torch
from support.evaluation import CLASSES, SIDE, ReadsTheLabel, Sees, models, painted, random_images
from torch import nn

from cfmask import InputError, ShiftReport, evaluate
from cfmask.data.datamodule import Tensors
from cfmask.evaluation.estimates import interval
from cfmask.shift import Shift


def counts(report: ShiftReport) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    return {(row.model, row.shift): (row.correct, row.total) for row in report.of("accuracy")}


@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_every_image_counts_once_whatever_the_batch_size(batch_size):
    shifts = [painted("id", 53, 4, reference=True), painted("sketch", 20, 20)]
    report = evaluate(models(), shifts, batch_size)
    assert counts(report) == {
        ("good", "id"): (53, 53),
        ("misled", "id"): (49, 53),
        ("good", "sketch"): (20, 20),
        ("misled", "sketch"): (0, 20),
    }
    assert report.value("misled", "id") == 49 / 53
    assert report.reference == "id"
    for row in report.of("accuracy"):
        assert (row.low, row.high) == interval(row.correct, row.total)


def linear_classifier(side: int = SIDE) -> Sees:
    torch.manual_seed(3)
    return Sees(nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, CLASSES)), side)


@pytest.mark.parametrize("batch_size", [1, 7, 250])
@pytest.mark.parametrize("classes", [None, (0, 2, 3)])
def test_accuracy_is_that_of_numpy(batch_size, classes):
    model, data = linear_classifier(), random_images(101)
    allowed = list(classes or range(CLASSES))
    data.labels = torch.tensor(allowed)[data.labels % len(allowed)]
    layer = model.encoder[1]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    logits = data.images.numpy().reshape(101, -1) / 255 @ weight.T + bias
    guesses = np.array(allowed)[logits[:, allowed].argmax(1)]
    expected = int((guesses == data.labels.numpy()).sum())
    assert 0 < expected < 101
    shift = Shift("x", lambda preprocess: data, classes=classes)
    assert counts(evaluate({"m": model}, [shift], batch_size)) == {("m", "x"): (expected, 101)}


def test_a_set_with_fewer_classes_is_judged_among_them():
    data = random_images(30)
    data.labels %= 2
    data.images[:, 0, 0, 0] = 4
    whole = Shift("all", lambda preprocess: data)
    part = Shift("part", lambda preprocess: data, classes=(0, 1))
    report = evaluate({"m": Sees(ReadsTheLabel(False))}, [whole, part])
    assert report.value("m", "all") == 0
    # With neither class favoured, the first one wins.
    assert report.value("m", "part") == (data.labels == 0).double().mean()
    assert report.protocol["sets"]["part"]["classes"] == 2
    assert report.protocol["sets"]["all"]["classes"] == "all"


def test_a_set_of_other_classes_says_which_of_the_head_are_right():
    data = random_images(30)
    data.images[:, 0, 0, 0] = data.labels
    data.labels = 100 + data.labels // 3
    accepts = {100: (0, 2), 101: (3, 4)}
    shift = Shift("x", lambda preprocess: data, accepts=accepts)
    report = evaluate({"m": Sees(ReadsTheLabel(False))}, [shift])
    expected = int((data.images[:, 0, 0, 0] != 1).sum())
    assert 0 < expected < 30
    assert counts(report) == {("m", "x"): (expected, 30)}


def test_models_of_other_sizes_get_their_own_images():
    asked = []

    def load(preprocess):
        asked.append(preprocess.size)
        side = preprocess.size[0]
        images = torch.zeros(11, 3, side, side, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(11) % CLASSES
        return Tensors(images, torch.arange(11) % CLASSES)

    both = {"small": Sees(ReadsTheLabel(False)), "large": Sees(ReadsTheLabel(False), 8)}
    report = evaluate({**both, "small too": both["small"]}, [Shift("x", load)])
    assert asked == [(4, 4), (8, 8)]
    assert set(counts(report).values()) == {(11, 11)}


def test_means_weigh_sets_alike():
    sizes = {
        "digits/id": (40, 0),
        "digits/counter": (10, 5),
        "digits/sketch": (20, 4),
        "digits/rendition": (8, 8),
        "digits/v2": (5, 0),
    }
    shifts = [painted(name, *size, reference=name == "digits/id") for name, size in sizes.items()]
    report = evaluate({"m": Sees(ReadsTheLabel(True))}, shifts)
    assert report.value("m", "O3") == pytest.approx((0.5 + 0.8 + 0) / 3)
    assert report.value("m", "mean of shifts") == pytest.approx((0.5 + 0.8 + 0 + 1) / 4)
    assert report.protocol["means"]["O3"] == list(sizes)[1:4]
    assert set(report.protocol["means"]["mean of shifts"]) == set(sizes) - {"digits/id"}


@pytest.mark.parametrize("name", ["O3", "mean of shifts", "harmonic mean", "x"])
def test_a_name_stands_for_one_set_or_combination(name):
    with pytest.raises(InputError, match=f"different names.*'{name}'"):
        evaluate(models(), [painted("x", 5), painted(name, 5)])


def test_there_is_no_mean_of_one_set():
    shifts = [painted("id", 5, reference=True), painted("sketch", 5)]
    report = evaluate({"m": Sees(ReadsTheLabel(False))}, shifts)
    assert [row.shift for row in report.of("accuracy")] == ["id", "sketch"]
    assert report.protocol["means"] == {}


def test_reduced_precision_runs_the_encoder_alone_in_it():
    seen = {}

    class Layer(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen[self.out_features] = out.dtype
            return out

    model = Sees(nn.Sequential(nn.Flatten(), Layer(3 * SIDE * SIDE, 7)), head=Layer(7, CLASSES))
    report = evaluate({"m": model}, [painted("x", 9)], precision="bf16")
    assert seen == {7: torch.bfloat16, CLASSES: torch.float32}
    assert report.protocol["precision"] == "bf16"


@pytest.mark.parametrize("fails", [False, True])
def test_models_are_left_as_they_were(fails):
    model = linear_classifier()
    model.encoder.append(nn.Dropout(0.5))
    model.train()
    model.encoder[0].eval()
    model.encoder[1].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    weights = [parameter.clone() for parameter in model.parameters()]
    data = random_images(10)
    if fails:
        data.labels[0] = CLASSES
        with pytest.raises(InputError, match="other classes"):
            evaluate({"m": model}, [Shift("x", lambda preprocess: data)])
    else:
        shifts = [Shift("x", lambda preprocess: data)]
        assert evaluate({"m": model}, shifts).rows == evaluate({"m": model}, shifts).rows
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters()))


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(InputError, match="at least one"):
        evaluate({}, [painted("x", 3)])
    with pytest.raises(InputError, match="at least one"):
        evaluate(models(), [])
    with pytest.raises(InputError, match="empty one"):
        evaluate(models(), [painted("empty one", 0)])
