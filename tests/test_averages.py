"""Averages of the weights of a training, against weighted means in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.averages import Path as WeightsPath
from support.averages import weights_of
from support.small_methods import fit
from support.training import arguments, fails, run

from cfmask import FineTuning, InputError, ShiftReport, load_classifier
from cfmask.checkpoint import AVERAGE
from cfmask.commands.eval_models import evaluate_run
from cfmask.methods.averages import Average, move
from cfmask.runs.averaging import TrajectoryAverage

STEPS = 5


@pytest.mark.parametrize(
    "average", [Average("ema", 0.9), Average("ema", 0.0), Average("beta"), Average("beta", shape=2)]
)
def test_a_running_average_is_the_weighted_mean_of_all_weights(average):
    path = torch.randn(STEPS + 1, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    running = path[0].clone()
    for k in range(1, STEPS + 1):
        move([running], [path[k]], average.share(k, STEPS))
    expected = weights_of(average, STEPS) @ path.numpy()
    np.testing.assert_allclose(running.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("ema:1.5", "the decay of an average in .0, 1., but got 1.5"),
        ("beta:0", "the shape of an average above 0, but got 0.0"),
        ("beta:nan", "the shape of an average above 0"),
        ("mean", "an average as ema, beta, ema:0.9998 or beta:0.1, but got 'mean'"),
        ("ema:", "but got 'ema:'"),
        ("ema:much", "but got 'ema:much'"),
    ],
)
def test_other_averages_are_refused(wrong, said):
    with pytest.raises(InputError, match=f"Expected {said}" if said[:3] != "but" else said):
        Average.of(wrong)


def test_an_average_is_named_with_its_number_or_without():
    assert Average.of("ema") == Average("ema", decay=0.999)
    assert Average.of("ema:0.9998") == Average("ema", decay=0.9998)
    assert Average.of("beta") == Average("beta", shape=0.5)
    assert Average.of("beta:0.1") == Average("beta", shape=0.1)


def test_a_training_is_averaged_over_its_steps_and_left_alone(tiny_clip, tmp_path):
    average = Average("beta")
    spy, averaging = WeightsPath(), TrajectoryAverage(average)
    method = FineTuning(tiny_clip, lr=1e-2)
    fit(method, tmp_path, STEPS, callbacks=[averaging, spy], accumulate_grad_batches=2)
    assert len(spy.weights) == STEPS + 1
    counts = weights_of(average, STEPS)
    found = averaging.classifier(method).state_dict()
    for name, value in found.items():
        expected = sum(count * one[name] for count, one in zip(counts, spy.weights))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(spy.weights[-1][name], method.classifier.state_dict()[name])
    assert averaging.bytes(method) == sum(value.nbytes for value in found.values())


OPTIONS = ("--average=beta", "--trainer.max_epochs=1", "--evaluation.pictures=0")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an average, six steps long."""
    folder = tmp_path_factory.mktemp("runs") / "averaged"
    run(folder, *OPTIONS)
    return folder


def test_the_average_is_a_row_of_its_own(averaged):
    report = ShiftReport.load(averaged / "report.json")
    assert set(report.models) == {"zero-shot", "tuned", "average", "WiSE-FT 0.5"}
    start, tuned, average = (
        load_classifier(averaged, name).head.weight
        for name in ("pretrained.safetensors", "weights.safetensors", AVERAGE)
    )
    # Between both, and neither of them.
    assert 0 < (average - start).norm() < (tuned - start).norm()
    gained = {pair.first for pair in report.differences if pair.second == "zero-shot"}
    gained |= {pair.second for pair in report.differences if pair.first == "zero-shot"}
    assert "average" in gained
    size = sum(value.nbytes for value in load_classifier(averaged).state_dict().values())
    assert json.loads((averaged / "summary.json").read_text())["memory"]["average"] == size
    # The file is a model like any other.
    out = averaged.parent / "alone"
    evaluate_run([str(averaged / AVERAGE), "--shifts=digits/id", "--images=20", f"--out={out}"])
    (alone,) = ShiftReport.load(out / "report.json").of("accuracy")
    assert alone.value == report.value("average", "digits/id", "accuracy")


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_average(averaged, tmp_path, capsys):
    copy = Path(shutil.copytree(averaged, tmp_path / "copy"))
    for name in ("weights.safetensors", AVERAGE, "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (copy / name).unlink()
    # The step-wise ones are of steps 2 and 4, of 6.
    assert "average is beta there and ema" in fails(
        capsys, *arguments(copy, *OPTIONS, "--average=ema"), "--resume=true"
    )
    run(copy, *OPTIONS, "--resume=true")
    for name in ("weights.safetensors", AVERAGE):
        one, other = load_file(averaged / name), load_file(copy / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
