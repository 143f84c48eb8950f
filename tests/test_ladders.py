from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from scipy.stats import binomtest
from support.evaluation import CLASSES, SIDE, Sees, in_processes, without_run
from torch import nn

from cfmask import InputError, Preprocess, ShiftReport, digits, evaluate, find_shifts
from cfmask.data.datamodule import Tensors
from cfmask.reporting.page import as_html
from cfmask.reporting.tables import footnotes
from cfmask.shift import Ladder, Request, Shift
from cfmask.shifts.corrupted import CORRUPTIONS, Corrupted

LADDER = ("scale_drop", "last_drop", "failure_point", "failure_sd", "failure_max", "never_wrong")


class Bears(nn.Module):
    """Features (B, K): the label of the first pixel, or the next one where the second is brighter
    than the third: an object that bears so much of a nuisance."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        label, nuisance, borne = (255 * images[:, 0, 0, :3]).round().long().unbind(1)
        label = label + (nuisance > borne).long()
        return nn.functional.one_hot(label % CLASSES, CLASSES) * self.scale


# Scale of the nuisance, in fiftieths, that each object bears.
BORNE = [0, 1, 2, 2, 3, 9, 9]


def seen(nuisance: list[int], borne: list[int]) -> Tensors:
    images = torch.zeros(len(borne), 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.arange(len(borne)) % CLASSES
    for k, column in enumerate((labels, torch.tensor(nuisance), torch.tensor(borne))):
        images[:, 0, 0, k] = column
    return Tensors(images, labels)


SCALES = (0.0, 1.0, 2.0, 3.0)


def one_set(order: list[tuple[int, int]]) -> Shift:
    """A set that holds a whole ladder, as object and scale of each image."""
    data = seen([s for _, s in order], [BORNE[k] for k, _ in order])
    steps = Ladder("fog", tuple(float(s) for _, s in order), tuple(f"t{k}" for k, _ in order), 4.0)
    return Shift("fog", lambda look: data, ladder=steps)


WHOLE = [(k, s) for k in range(len(BORNE)) for s in (3, 0, 2, 1)]


def steps(borne: list[int] = BORNE) -> list[Shift]:
    """A clean set and its three corrupted steps."""
    made = [Shift("id", lambda look, s=0: seen([0] * len(borne), borne), True)]
    for s in (1, 2, 3):
        load = lambda look, s=s: seen([s] * len(borne), borne)  # noqa: E731
        ladder = Ladder("bad/fog", float(s), beyond=4.0, clean="id")
        made.append(Shift(f"bad/fog-{s}", load, part_of="bad", ladder=ladder))
    return made


def slow_points(right: dict[tuple[int, int], bool]) -> list[float]:
    """The smallest wrong scale of every object, by a loop."""
    found = []
    for k in range(len(BORNE)):
        point = 4
        for s in (3, 2, 1, 0):
            if not right[k, s]:
                point = s
        found.append(float(point))
    return found


RIGHT = {(k, s): s <= borne for k, borne in enumerate(BORNE) for s in range(4)}


@pytest.mark.parametrize(
    ("shifts", "name"),
    [([one_set(WHOLE)], "fog"), ([one_set(WHOLE[::-1])], "fog"), (steps(), "bad/fog")],
)
def test_ladders_score_as_designed_in_one_set_or_in_several(shifts, name):
    report = evaluate({"m": Sees(Bears())}, shifts)
    points = slow_points(RIGHT)
    assert points == [1, 2, 3, 3, 4, 4, 4]
    row = report.row("m", name, "failure_point")
    half = 1.959964 * stdev(points) / math.sqrt(7)
    assert (row.value, row.low, row.high) == pytest.approx(
        (fmean(points), fmean(points) - half, fmean(points) + half)
    )
    assert report.value("m", name, "failure_sd") == pytest.approx(stdev(points))
    assert report.value("m", name, "failure_max") == 4
    never = report.row("m", name, "never_wrong")
    assert (never.correct, never.total, never.low) == (
        3,
        7,
        pytest.approx(binomtest(3, 7).proportion_ci().low),
    )
    # Each object's own drop, whose mean has a normal interval.
    drops = [1 - fmean(RIGHT[k, s] for s in (1, 2, 3)) for k in range(7)]
    row = report.row("m", name, "scale_drop")
    half = 1.959964 * stdev(drops) / math.sqrt(7)
    assert (row.value, row.low, row.high) == pytest.approx(
        (fmean(drops), fmean(drops) - half, fmean(drops) + half)
    )
    assert report.value("m", name, "last_drop") == pytest.approx(1 - 3 / 7)
    kept = report.details["m"][name]
    assert kept["scales"]["correct"] == [sum(RIGHT[k, s] for k in range(7)) for s in range(4)]
    assert kept["failures"] == {"scale": [0, 1, 2, 3, 4], "count": [0, 1, 1, 2, 3]}
    assert "mean of shifts" not in {row.shift for row in report.rows}


def test_an_object_that_bears_less_scores_less_and_other_clean_images_are_no_trajectories():
    best = evaluate({"m": Sees(Bears())}, steps())
    worse = evaluate({"m": Sees(Bears())}, steps([0, 1, 2, 2, 3, 9, 1]))
    for metric, better in (("failure_point", 1), ("never_wrong", 1), ("scale_drop", -1)):
        difference = worse.value("m", "bad/fog", metric) - best.value("m", "bad/fog", metric)
        assert better * difference < 0
    # A clean set of another size gives scale 0 its accuracy alone.
    clean, *others = steps()
    fewer = seen([0, 9], [3, 3])
    apart = [replace(clean, load=lambda look: fewer), *others]
    report = evaluate({"m": Sees(Bears())}, apart)
    assert report.details["m"]["bad/fog"]["scales"]["total"] == [2, 7, 7, 7]
    assert report.value("m", "bad/fog", "last_drop") == pytest.approx(1 / 2 - 3 / 7)
    assert report.value("m", "bad/fog", "failure_point") == fmean(slow_points(RIGHT))


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_figures_of_one(tmp_path, count):
    def make(file: Path) -> None:
        shifts = [*steps(), one_set(WHOLE)]
        evaluate({"m": Sees(Bears())}, shifts, store=tmp_path / "answers").save(file)

    in_processes(count, tmp_path / "out", make)
    alone = without_run(evaluate({"m": Sees(Bears())}, [*steps(), one_set(WHOLE)]))
    assert {row.metric for row in alone.rows if row.shift == "bad/fog"} == set(LADDER)
    for rank in range(count):
        assert without_run(ShiftReport.load(tmp_path / "out" / f"{rank}.json")) == alone
    again = evaluate({"m": Sees(Bears())}, [*steps(), one_set(WHOLE)], store=tmp_path / "answers")
    assert without_run(again) == alone
    assert set(again.run["reused"]) == {"id", "fog", *(f"bad/fog-{s}" for s in (1, 2, 3))}


def test_the_page_shows_curve_histogram_and_table_of_every_ladder():
    models = {"a": Sees(Bears()), "b": Sees(Bears())}
    whole = as_html(evaluate(models, [*steps(), one_set(WHOLE)]))
    page = whole.partition('<section id="scales">')[2].partition("</section>")[0]
    for name in ("fog", "bad/fog"):
        assert page.count(f"<h3>{name}</h3>") == 1
        assert page.count(f"<h3>{name}: failure points</h3>") == 1
    assert page.count("<table") == 1
    assert "a: mean failure point 3.00, sd 1.15, largest 4.00" in page


def test_what_is_no_ladder_is_refused_in_one_line():
    twice = [*steps(), replace(steps()[1], name="again")]
    other = replace(steps()[1].ladder, beyond=5.0)
    for shifts, said in (
        ([one_set([*WHOLE, (2, 0)])], "each scale once on a trajectory of fog, but t2 has 0 twice"),
        (twice, "but every one has 1 twice"),
        ([*steps()[:3], replace(steps()[3], ladder=other)], "one failure point for never wrong"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            evaluate({"m": Sees(Bears())}, shifts)
        assert "\n" not in str(caught.value)
    short = replace(one_set(WHOLE), load=lambda look: seen([0], [0]))
    with pytest.raises(InputError, match="Expected a trajectory and scale for each of the 1"):
        evaluate({"m": Sees(Bears())}, [short])
    for scales, names, said in (
        ((0.0, 4.0), None, "from 0 to below 4"),
        (-1.0, None, "from 0 to below 4"),
        ((0.0,), ("a", "b"), "but got 1 and 2"),
    ):
        with pytest.raises(InputError, match=said):
            Ladder("fog", scales, names, 4.0)


def test_a_table_tells_what_its_intervals_are():
    report = evaluate({"m": Sees(Bears())}, steps())
    note = " ".join(footnotes(report, "scale_drop"))
    assert "drops over scales: normal" in note and "failure points: normal" in note
    plain = evaluate({"m": Sees(Bears())}, steps()[:1])
    assert "Clopper-Pearson" in " ".join(footnotes(plain)) and "scales" not in footnotes(plain)[-1]


def request(*corrupt: str, images: int = 12) -> Request:
    return Request(None, digits.CLASS_NAMES, images, corrupt=corrupt)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(48, 48), (9, 5)])
def test_a_corruption_is_the_same_every_time_and_grows(name, size):
    rows, columns = (torch.linspace(0, 1, side) for side in size)
    pattern = ((6 * rows.view(-1, 1)).sin() ** 2 * (0.2 + 0.6 * columns)).expand(3, *size)
    image = (255 * pattern).round().byte()
    data = [(image, 3), (image, 4)]
    changes = []
    for severity in range(1, 6):
        made = Corrupted(data, name, severity)
        (first, label), (second, _) = made[0], made[1]
        assert (first.dtype, first.shape, label) == (torch.uint8, image.shape, 3)
        assert torch.equal(first, Corrupted(data, name, severity)[0][0])
        assert torch.equal(first, second) != ("noise" in name)
        changes.append(float((first.double() - image).abs().mean()))
    if size == (48, 48):
        assert changes == sorted(changes)
        assert changes[-1] > 1.3 * changes[0] > 0


def test_the_reference_set_is_corrupted_at_five_severities():
    found = find_shifts(["digits/id", "digits/sketch"], request("contrast", "pixelate"))
    inside, _, *made = found
    assert [s.name for s in made] == [
        f"corrupted/{name}-{k}" for name in ("contrast", "pixelate") for k in range(1, 6)
    ]
    assert not any(shift.averaged or shift.in_distribution for shift in made)
    look = Preprocess((48, 48))
    clean, worst = inside.load(look), made[4].load(look)
    assert [worst[i][1] for i in range(12)] == [clean[i][1] for i in range(12)]
    # Contrast: the distance of every pixel from the mean grey, times 0.05.
    image = clean[3][0].double() / 255
    grey = (image * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0).mean()
    expected = 255 * (0.05 * image + 0.95 * grey)
    assert (worst[3][0] - expected).abs().max() <= 1
    every = find_shifts(["digits/id"], request("all"))
    assert len(every) == 1 + 5 * len(CORRUPTIONS)
    # All and one of them are all of them, each once.
    for both in (("all", "contrast"), ("contrast", "all")):
        names = [shift.name for shift in find_shifts(["digits/id"], request(*both))]
        assert sorted(names) == sorted(shift.name for shift in every)


def test_a_corruption_that_is_none_or_of_nothing_is_refused():
    with pytest.raises(InputError, match="contrast"):
        find_shifts(["digits/id"], request("contrasts"))
    with pytest.raises(InputError, match="Expected a set in distribution to corrupt by contrast"):
        find_shifts(["digits/sketch"], request("contrast"))
