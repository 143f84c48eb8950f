from __future__ import annotations

import math
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score
from support.evaluation import CLASSES, SIDE, Sees, in_processes, painted, without_run
from torch import nn

from cfmask import InputError, Preprocess, ShiftReport, digits, evaluate, find_shifts
from cfmask.data.datamodule import Tensors
from cfmask.evaluation.novelty import auroc, average_precision, fpr, oscr, oscr_curve
from cfmask.reporting.page import as_html
from cfmask.shift import UNKNOWN, Request, Shift


def scores(seed: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of 90 known and 40 unknown images, and which answers are right."""
    rng = torch.Generator().manual_seed(seed)
    known, unknown = torch.randn(90, generator=rng) + 1, torch.randn(40, generator=rng)
    right = torch.rand(90, generator=rng) < 0.7
    return (known.round(), unknown.round(), right) if ties else (known, unknown, right)


@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_equals_its_slow_definition(ties):
    known, unknown, right = scores(0, ties)
    truth, both = np.repeat([1, 0], [90, 40]), torch.cat([known, unknown]).numpy()
    assert auroc(known, unknown)[0] == pytest.approx(roc_auc_score(truth, both))
    expected = average_precision_score(1 - truth, -both)
    assert average_precision(known, unknown)[0] == pytest.approx(expected)
    pairs = [
        hit * ((k > u) + 0.5 * (k == u))
        for (k, hit), u in product(zip(known.tolist(), right.tolist()), unknown.tolist())
    ]
    assert oscr(known, unknown, right)[0] == pytest.approx(np.mean(pairs))
    reached = [t for t in known.tolist() if (known >= t).double().mean() >= 0.95]
    accepted = sum(u >= max(reached) for u in unknown.tolist())
    assert fpr(known, unknown)[0] == accepted / 40


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_has_the_area_that_is_reported(ties, monkeypatch):
    monkeypatch.setattr("cfmask.evaluation.novelty.POINTS", 4001)
    known, unknown, right = scores(1, ties)
    curve = oscr_curve(known, unknown, right)
    assert np.trapezoid(curve["ccr"], curve["fpr"]) == pytest.approx(
        oscr(known, unknown, right)[0], abs=1e-3
    )
    # At the far end every known image counts, so the curve ends at the accuracy.
    assert curve["ccr"][-1] == pytest.approx(float(right.float().mean()))
    assert curve["ccr"] == sorted(curve["ccr"])


def test_intervals_hold_the_true_figure_as_often_as_they_say():
    # Normal scores one apart: AUROC and FPR95 are known; OSCR with 70 % right answers at random.
    normal = torch.distributions.Normal(0.0, 1.0)
    true = float(normal.cdf(torch.tensor(1 / math.sqrt(2))))
    beyond = 1 - float(normal.cdf(1 + normal.icdf(torch.tensor(0.05))))
    missed = {"auroc": 0, "oscr": 0, "fpr": 0}
    for seed in range(100):
        known, unknown, right = scores(seed + 10, ties=False)
        found = {
            "auroc": (auroc(known, unknown), true),
            "oscr": (oscr(known, unknown, right), 0.7 * true),
            "fpr": (fpr(known, unknown), beyond),
        }
        for name, ((value, low, high), truth) in found.items():
            assert low <= value <= high
            missed[name] += not low <= truth <= high
    # that of FPR95 is too wide on purpose.
    bound = binomtest(5, 100).proportion_ci(0.999).high * 100
    assert max(missed.values()) < bound
    assert missed["fpr"] <= 5
    assert missed["auroc"] >= 1, "an interval that never misses is too wide"


def test_scores_that_never_overlap_have_no_interval():
    known, unknown = torch.arange(5.0) + 10, torch.arange(4.0)
    assert auroc(known, unknown)[0] == 1
    assert average_precision(known, unknown)[0] == 1
    assert math.isnan(auroc(known, unknown)[1])
    assert math.isnan(average_precision(known, unknown)[1])


class Sure(nn.Module):
    """Features (B, K): of the class that the first pixel says, as much as the second is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        labels = (images[:, 0, 0, 0] * 255).round().long() % CLASSES
        return nn.functional.one_hot(labels, CLASSES) * 10 * images[:, :1, 0, 1] * self.scale


def graded(levels: list[int], wrong: int = 0) -> Tensors:
    """An image of each brightness; the first ones are answered wrong."""
    images = torch.zeros(len(levels), 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.arange(len(levels)) % CLASSES
    images[:, 0, 0, 0] = (labels + (torch.arange(len(levels)) < wrong)) % CLASSES
    images[:, 0, 0, 1] = torch.tensor(levels)
    return Tensors(images, labels)


KNOWN, STRANGE = [200, 180, 160, 140, 120, 100, 80, 60], [150, 110, 90, 50, 40]


def both(known: list[int], strange: list[int], wrong: int = 0) -> list[Shift]:
    inside, outside = graded(known, wrong), graded(strange)
    outside.labels[:] = UNKNOWN
    return [
        Shift("id", lambda look: inside, True),
        painted("sketch", 6),
        Shift("strange", lambda look: outside, unknown=True),
    ]


MEASURED = {
    f"{of}_{by}" for of in ("auroc", "fpr95", "aupr", "oscr") for by in ("max_logit", "softmax")
}


def test_unknown_classes_score_as_designed_and_are_in_no_mean():
    report = evaluate({"m": Sees(Sure())}, both(KNOWN, STRANGE, wrong=2))
    rows = [row for row in report.rows if row.shift == "strange"]
    assert {row.metric for row in rows} == MEASURED
    above = sum(k > u for k, u in product(KNOWN, STRANGE))
    kept = sum(k > u for k, u in product(KNOWN[2:], STRANGE))
    for by in ("max_logit", "softmax"):
        assert report.value("m", "strange", f"auroc_{by}") == pytest.approx(above / 40)
        assert report.value("m", "strange", f"oscr_{by}") == pytest.approx(kept / 40)
        # 95 % of eight are all of them: what is brighter than the darkest.
        assert report.value("m", "strange", f"fpr95_{by}") == 3 / 5
    # Two sets are no mean, as the strange one does not count.
    assert "mean of shifts" not in {row.shift for row in report.rows}
    assert report.protocol["sets"]["strange"]["unknown"] is True
    assert list(report.details["m"]["strange"]) == ["oscr"]
    # One more known image that is answered wrong costs OSCR and not AUROC.
    worse = evaluate({"m": Sees(Sure())}, both(KNOWN, STRANGE, wrong=3))
    assert worse.value("m", "strange", "auroc_softmax") == pytest.approx(above / 40)
    assert worse.value("m", "strange", "oscr_softmax") < kept / 40


def test_two_models_and_a_set_of_unknown_classes_make_a_whole_report(tmp_path):
    report = evaluate({"a": Sees(Sure()), "b": Sees(Sure())}, both(KNOWN, STRANGE))
    assert {pair.shift for pair in report.differences} == {"id", "sketch"}
    report.save(tmp_path / "report.json")
    assert ShiftReport.load(tmp_path / "report.json") == report
    page = as_html(report)
    assert page.count("<h3>strange</h3>") == 1
    assert "OSCR by the maximum softmax" in page


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_figures_of_one(tmp_path, count):
    def make(file: Path) -> None:
        sets = both(KNOWN, STRANGE, wrong=2)
        evaluate({"m": Sees(Sure())}, sets, store=tmp_path / "answers").save(file)

    in_processes(count, tmp_path / "out", make)
    alone = without_run(evaluate({"m": Sees(Sure())}, both(KNOWN, STRANGE, wrong=2)))
    for rank in range(count):
        assert without_run(ShiftReport.load(tmp_path / "out" / f"{rank}.json")) == alone
    again = evaluate({"m": Sees(Sure())}, both(KNOWN, STRANGE, wrong=2), store=tmp_path / "answers")
    assert without_run(again) == alone
    assert len(list((tmp_path / "answers").glob("strange*"))) == 1


def picture(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(path)


def ask(*unknown: str | Path) -> list[Shift]:
    request = Request(None, digits.CLASS_NAMES, 20, unknown=tuple(map(str, unknown)))
    return find_shifts(["digits/id"], request)


def test_any_folder_is_a_set_of_unknown_classes(tmp_path):
    for name in ("a.png", "deep/b.png", "deep/er still/c.jpg", "deep/.hidden/d.png"):
        picture(tmp_path / "my own" / name)
    picture(tmp_path / "other" / "my own" / "e.png")
    inside, first, second = ask(tmp_path / "my own", tmp_path / "other" / "my own")
    assert (inside.unknown, first.unknown, second.unknown) == (False, True, True)
    assert first.name != second.name
    assert ask(tmp_path / "my own")[1].name == "unknown/my own"
    assert first.found.images == 3
    data = first.load(Preprocess((8, 8)))
    assert [data[i][1] for i in range(3)] == [UNKNOWN] * 3
    assert not first.averaged


def test_the_digits_world_has_images_without_digits():
    request = Request(None, digits.CLASS_NAMES, 30)
    names = ["digits/id", "digits/mirrored", "digits/photographs"]
    inside, mirrored, photographs = find_shifts(names, request)
    assert [s.unknown for s in (inside, mirrored, photographs)] == [False, True, True]
    look = Preprocess((48, 48))
    for shift in (mirrored, photographs):
        data = shift.load(look)
        assert len(data) == 30
        assert {data[i][1] for i in range(30)} == {UNKNOWN}
        assert torch.equal(data[7][0], shift.load(look)[7][0])
    # Without a digit the images differ from those of the same draw with one.
    drawn = digits.draw(digits.SETS["id"], 30, zlib.crc32(b"photographs/0"))
    inked = (photographs.load(look).images != drawn.images).any(1)
    around = nn.functional.max_pool2d(drawn.digit.float(), 9, 1, 4) > 0
    assert not (inked & ~around).any()
    assert inked[drawn.digit].float().mean() > 0.9
    assert "digits/mirrored" not in [s.name for s in find_shifts(["digits"], request)]


STRANGERS = [(Image.new("RGB", (8, 8)), "a word"), (Image.new("RGB", (9, 8)), None)]


def strangers() -> list[object]:
    return STRANGERS


class Named(list):  # type: ignore[type-arg]
    classes = ("cat", "Seven")


def familiar() -> list[object]:
    return Named(STRANGERS)


def test_a_data_set_of_ones_own_needs_no_labels():
    _, found = ask(f"{__name__}.strangers")
    data = found.load(Preprocess((8, 8)))
    assert [data[i][1] for i in range(2)] == [UNKNOWN] * 2
    with pytest.raises(InputError, match="'Seven' is one of its own; leave it out"):
        ask(f"{__name__}.familiar")


def test_known_classes_and_nothing_are_refused_in_one_line(tmp_path):
    picture(tmp_path / "strange" / "Seven" / "a.png")
    picture(tmp_path / "nine" / "a.png")
    (tmp_path / "empty").mkdir()
    for what, said in {
        "strange": "does not know, but 'Seven' is one of its own",
        "nine": "'nine' is one of its own",
        "empty": "Expected images of unknown classes in",
        "absent": "does not exist",
    }.items():
        with pytest.raises(InputError, match=said) as caught:
            ask(tmp_path / what)
        assert "\n" not in str(caught.value)
    lone = replace(both(KNOWN, STRANGE)[2], name="lone")
    with pytest.raises(
        InputError, match="Expected a set of known classes for lone to be told from"
    ):
        evaluate({"m": Sees(Sure())}, [lone])
