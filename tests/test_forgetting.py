"""Zero-shot accuracy on other tasks before and after tuning."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binomtest
from support.evaluation import linear
from support.runs import plant_run

from cfmask import InputError, Preprocess, ShiftReport, load_classifier, save_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.compare import check_run
from cfmask.comparison.task_heads import tasks_of, towers_of
from cfmask.evaluation.answers import Answers
from cfmask.evaluation.forgetting import MEAN_OF_TASKS, mean_change, task_rows
from cfmask.families.pretrained import TINY_CLIP
from cfmask.inference.settings import Settings
from cfmask.inference.wise import Blend, WeightLine
from cfmask.shifts.tasks import find_tasks

# What the tiny CLIP takes.
LOOK = Preprocess((48, 48))


def noisy(classifier, share: float = 0.5):
    other = copy.deepcopy(classifier)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.encoder.parameters():
            if weight.numel() > 1:
                weight += share * weight.std() * torch.randn(weight.shape, generator=rng)
    return other


@torch.no_grad()
def by_open_clip(encoder, task) -> torch.Tensor:
    """Predicted classes of all images of a task, with open_clip alone."""
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{TINY_CLIP}")
    clip.eval().visual.load_state_dict(encoder.state_dict())
    tokenizer = open_clip.SimpleTokenizer(
        bpe_path=str(TINY_CLIP / "merges.txt.gz"), context_length=clip.context_length
    )
    rows = [
        F.normalize(clip.encode_text(tokenizer([t.format(name) for t in task.templates])), dim=-1)
        for name in task.class_names
    ]
    weight = F.normalize(torch.stack([row.mean(0) for row in rows]), dim=-1)
    images = task.shift.load(LOOK).images.float() / 255
    return (clip.encode_image((images - 0.5) / 0.25) @ weight.T).argmax(1)


@pytest.mark.slow
def test_answers_are_those_of_open_clip_on_every_tower(tiny_clip):
    line = WeightLine(tiny_clip, noisy(tiny_clip))
    models = {"zero-shot": tiny_clip, "half": Blend(line, 0.5), "tuned": line.tuned}
    towers = {n: copy.deepcopy(m.encoder) for n, m in models.items() if n != "half"}
    towers["half"] = copy.deepcopy(line.at(0.5).encoder)
    before = tiny_clip.spec, {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    tasks = find_tasks(["digits/style", "digits/background"], 60, 1)
    starts = {"half": "zero-shot", "tuned": "zero-shot"}
    rows = tasks_of(models, towers_of(models, False), tasks, starts, Settings())
    found = {(row.model, row.shift, row.metric): row for row in rows}
    right = {}
    for task in tasks:
        labels = task.shift.load(LOOK).labels
        for name, encoder in towers.items():
            hits = by_open_clip(encoder, task) == labels
            right[name, task.name] = hits
            row = found[name, task.name, "task_accuracy"]
            assert (row.correct, row.total) == (int(hits.sum()), 60)
            exact = binomtest(int(hits.sum()), 60).proportion_ci(method="exact")
            assert (row.low, row.high) == pytest.approx((exact.low, exact.high))
    # Better than chance before, and not the same after: else the test could not fail.
    assert found["zero-shot", "task/style", "task_accuracy"].value > 0.3
    assert found["tuned", "task/style", "task_change"].value != 0
    for name in starts:
        changes = [
            (right[name, t.name].double() - right["zero-shot", t.name].double()).mean()
            for t in tasks
        ]
        assert found[name, MEAN_OF_TASKS, "task_change"].value == pytest.approx(np.mean(changes))
    assert ("zero-shot", MEAN_OF_TASKS, "task_change") not in found
    assert tiny_clip.spec == before[0]
    assert all(torch.equal(before[1][k], v) for k, v in tiny_clip.state_dict().items())


def answers(correct: list[int]) -> Answers:
    right = torch.tensor(correct, dtype=torch.bool)
    return Answers(right.long(), right.long()[:, None], right, torch.ones_like(right))


def test_one_task_has_no_mean_and_equal_tasks_have_their_own_with_less_doubt():
    before, after = answers([1, 1, 1, 0, 0, 1, 0, 1]), answers([1, 0, 0, 0, 1, 0, 0, 1])
    one = list(task_rows({"a": {"s": before, "t": after}}, {"t": "s"}))
    assert {row.shift for row in one} == {"a"}
    change = next(row for row in one if row.metric == "task_change")
    assert change.value == pytest.approx(-2 / 8)
    four = {name: {"s": before, "t": after} for name in "abcd"}
    mean = {row.metric: row for row in task_rows(four, {"t": "s"}) if row.shift == MEAN_OF_TASKS}
    assert mean["task_change"].value == pytest.approx(change.value)
    assert mean["task_change"].low - change.value == pytest.approx((change.low - change.value) / 2)
    assert mean["task_change"].high - change.value == pytest.approx(
        (change.high - change.value) / 2
    )


def test_the_interval_of_a_mean_of_changes_covers_it():
    """The mean of normal estimates with their own intervals is covered as often as said."""
    rng = np.random.default_rng(0)
    truth, sd, z = np.array([0.1, -0.3, 0.05]), np.array([0.02, 0.1, 0.05]), 1.96
    inside = 0
    for values in truth + sd * rng.standard_normal((4000, 3)):
        _, low, high = mean_change([(v, v - z * s, v + z * s) for v, s in zip(values, sd)])
        inside += low <= truth.mean() <= high
    assert abs(inside / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def folder_task(root: Path) -> Path:
    """Two classes of the tiny CLIP's vocabulary, black and white pictures."""
    for name, level in (("a_faint_zero", 0), ("the_moon", 255)):
        (root / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (60, 50), (level, level, 40 * k)).save(root / name / f"{k}.png")
    return root


@pytest.mark.slow
def test_the_command_tells_tasks_beside_the_sets_and_keeps_their_answers(
    tmp_path, tiny_clip, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    plant_run(tmp_path / "run", tiny_clip)
    folder_task(tmp_path / "my task")
    words = ["run", "--images=30", "--pictures=0", "--shifts=digits/id", "--wise="]
    plain = evaluate_run([*words, "--out=out"])
    asked = [*words, "--out=out", "--tasks", "digits/digit,my task"]
    # Rows with other heads or crops of the same tower are not asked.
    more = evaluate_run([*asked, "--descriptions=digits", "--crop_selection=2"])
    assert more is not None and len(more.of("accuracy")) == 4 * len(plain.of("accuracy"))
    first, again = evaluate_run(asked), evaluate_run(asked)
    assert plain is not None and first is not None and again is not None
    assert "Change of zero-shot accuracy on other tasks" in capsys.readouterr().out
    assert first.rows == again.rows
    assert more.of("task_accuracy") == first.of("task_accuracy")
    assert [row for row in first.rows if not row.metric.startswith("task_")] == plain.rows
    cells = first.cells("task_accuracy")
    assert {shift for _, shift in cells} == {"task/digit", "task/my task", MEAN_OF_TASKS}
    assert cells["tuned", "task/my task"].total == 6
    assert first.protocol["tasks"]["task/my task"]["classes"] == ["a faint zero", "the moon"]
    assert ShiftReport.load(tmp_path / "out" / "report.json").rows == first.rows
    with pytest.raises(SystemExit):
        evaluate_run(["run", "out/report.json", "--images=30", "--shifts=digits/id", "--wise="])
    assert "for tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["digits/colour"], "task 'digits/colour'"),
        (["nowhere"], "nowhere is none"),
        (["digits/style", "digits"], "task/style twice"),
        (["photos"], "name the folder that holds them, such as photos/test"),
        (["one"], "at least 2 classes"),
        (["empty"], "Expected images"),
    ],
)
def test_what_is_no_task_is_one_line(names, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for inner in ("photos/train/a", "photos/test/a", "one/a", "empty/a", "empty/b"):
        Path(inner).mkdir(parents=True)
    with pytest.raises(InputError, match=words):
        find_tasks(names, 10, 0)


def test_models_without_their_text_tower_are_refused_before_training(tiny_clip, tmp_path):
    with pytest.raises(InputError, match="Sequential has none"):
        check_run(linear(), ["digits"], None, tasks=["digits"])
    check_run(tiny_clip, ["digits"], None, tasks=["digits/style"])
    for pretrained, words in ((None, "random weights"), ("mine.pt", "--trust true")):
        options = {**tiny_clip.spec.options, "pretrained": pretrained}
        other = copy.copy(tiny_clip)
        other.spec = replace(tiny_clip.spec, model="ViT-B-32", options=options)
        other._made_of = None
        with pytest.raises(InputError, match=words):
            towers_of({"m": other}, False)
    save_classifier(tiny_clip, tmp_path / "a.safetensors")
    assert len(towers_of({"m": load_classifier(tmp_path / "a.safetensors")}, False)) == 1
