from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.digits_sets import plant
from support.imagenet_trees import plant_one
from support.runs import QUICK, SETS, plant_run

from cfmask import (
    InputError,
    Request,
    ShiftReport,
    digits,
    evaluate,
    find_shifts,
    interpolate,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.compare import compare
from cfmask.comparison.joining import joined
from cfmask.comparison.sources import Labels, labels_of, models_of, named_classifier
from cfmask.inference.wise import Blend, WeightLine, alphas_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory, _tiny_clip) -> tuple[Path, Path]:
    import copy

    root = tmp_path_factory.mktemp("runs")
    first, second = (
        plant_run(root / name, copy.deepcopy(_tiny_clip), seed)
        for seed, name in enumerate(("first", "second"))
    )
    return first, second


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0.5", [0.5]),
        ("0,0.1,...,1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0, 0.25, ..., 0.75", [0, 0.25, 0.5, 0.75]),
        ("0.1,0.5,0.6,...,0.8", [0.1, 0.5, 0.6, 0.7, 0.8]),
        ("[1,0,0.5]", [0, 0.5, 1]),
        ([0.3, 0.2], [0.2, 0.3]),
        ("", []),
    ],
)
def test_alphas_are_listed_or_counted_out(text, alphas):
    assert alphas_of(text) == pytest.approx(alphas)


@pytest.mark.parametrize(
    "text", ["0,...,1", "0,0.3,...,1", "1,0.9,...,0", "half", "1.5", "0,0.1,..."]
)
def test_alphas_that_make_no_sense_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="alphas") as caught:
        alphas_of(text)
    assert "\n" not in str(caught.value)


def test_a_point_of_a_line_has_the_weights_of_interpolation(tiny_clip):
    import copy

    tuned = copy.deepcopy(tiny_clip)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += torch.randn_like(weight)
    before = copy.deepcopy(tuned.state_dict())
    line = WeightLine(tiny_clip, tuned)
    for alpha in (0.25, 0.0, 1.0, 0.25):
        expected = interpolate(tiny_clip, tuned, alpha).state_dict()
        found = Blend(line, alpha).classifier().state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert Blend(line, 0.1).classifier() is Blend(line, 0.9).classifier()
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_a_curve_of_many_alphas_is_that_of_single_models(runs):
    report = compare([str(runs[0])], str(runs[0] / "curve"), SETS, wise="0,0.25,...,1", images=30)
    start, tuned = load_classifier(runs[0], PRETRAINED), load_classifier(runs[0])
    single = {f"WiSE-FT {a}": interpolate(start, tuned, a) for a in (0.25, 0.5, 0.75)}
    shifts = find_shifts(SETS, Request(None, digits.CLASS_NAMES, 30))
    expected = evaluate({"zero-shot": start, "tuned": tuned, **single}, shifts)
    assert report.rows == expected.rows
    (curve,) = report.curves
    assert curve.alphas == [0, 0.25, 0.5, 0.75, 1]
    assert curve.models == ["zero-shot", *single, "tuned"]
    inside = [report.value(model, "id") for model in curve.models]
    assert curve.chosen == curve.models[inside.index(max(inside))]
    assert curve.chosen_on == "digits/id"


def test_the_shift_sets_choose_no_alpha(runs):
    report = compare([str(runs[0])], str(runs[0] / "none"), ["digits/sketch"], images=30)
    assert report.curves[0].chosen is report.curves[0].chosen_on is None


def test_several_sources_make_one_report(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = map(str, runs)
    weights = str(runs[1] / WEIGHTS)
    evaluate_run([first, second, weights, "open_clip:tiny-clip", *QUICK, "--wise", "0.5"])
    report = ShiftReport.load(tmp_path / "runs" / "evaluation" / "report.json")
    # The starting point is the same in both runs.
    assert report.models == [
        "first: zero-shot",
        "first: WiSE-FT 0.5",
        "first: tuned",
        "second: WiSE-FT 0.5",
        "second: tuned",
        weights,
        "open_clip:tiny-clip",
    ]
    for shift in ("id", "sketch"):
        assert report.value("second: tuned", shift) == report.value(weights, shift)
    assert [curve.models[0] for curve in report.curves] == ["first: zero-shot"] * 2
    printed = capsys.readouterr().out
    assert "second: tuned" in printed
    assert "runs/evaluation" in printed


def test_two_runs_are_compared_each_with_its_own_start(runs, tmp_path):
    import copy

    other = load_classifier(runs[0], PRETRAINED)
    with torch.no_grad():
        other.head.bias[0] += 1
    third = plant_run(tmp_path / "third", copy.deepcopy(other), 3)
    report = compare([str(runs[0]), str(third)], str(tmp_path / "out"), SETS, images=30, pictures=0)
    start, tuned = load_classifier(third, PRETRAINED), load_classifier(third)
    (shift,) = find_shifts(SETS[1:], Request(None, digits.CLASS_NAMES, 30))
    alone = evaluate({"start": start, "tuned": tuned}, [shift]).differences
    names = ("third: zero-shot", "third: tuned", "digits/sketch")
    found = [d for d in report.differences if (d.first, d.second, d.shift) == names]
    assert [replace(d, first="start", second="tuned") for d in found] == alone
    pairs = {(d.first, d.second) for d in report.differences}
    top = "first: zero-shot"
    assert pairs == {(top, model) for model in report.models[1:]} | {
        ("third: zero-shot", "third: tuned"),
        ("third: zero-shot", "third: WiSE-FT 0.5"),
    }


def test_a_run_keeps_its_report_and_its_settings(runs, capsys):
    evaluate_run([str(runs[1]), "--show", '["nll","ece"]'])
    report = ShiftReport.load(runs[1] / "report.json")
    assert report.models == ["zero-shot", "WiSE-FT 0.5", "tuned"]
    assert {row.total for row in report.of("accuracy") if row.total} == {30}
    printed = capsys.readouterr().out
    assert "Negative log-likelihood, nats" in printed
    assert "calibration" in printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing_there"], "open_clip:NAME/TAG"),
        (["clip:ViT-B-32"], "nothing_there|does not exist|open_clip:NAME/TAG"),
        (["open_clip:ViT-B-3"], "ViT-B-32"),
        (["timm:resnet1"], "resnet"),
        (["open_clip:tiny-clip", "open_clip:tiny-clip"], "each model once"),
        (["open_clip:tiny-clip", "--shifts=[digit]"], "digits"),
        (["open_clip:tiny-clip", "--wise=2"], "alphas"),
        (["open_clip:tiny-clip", "--fit=no.csv"], "no.csv"),
        (["open_clip:tiny-clip", "--fit=models"], "at least 3 models"),
        (["open_clip:tiny-clip", "none.json"], "none.json"),
        (["open_clip:tiny-clip", "--images=0"], "at least 1"),
        (["open_clip:tiny-clip", "--show=[speed]"], "ece"),
        (["open_clip:tiny-clip", f"--out={__file__}/x"], "py is a file"),
        (["open_clip:tiny-clip", "--shifts=folders", "--data_root=.", "--out=x"], "outside of"),
    ],
)
def test_bad_input_is_one_line(args, said, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluate_run([*(QUICK[:2] if "--shifts" not in str(args) else []), "--images=5", *args])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line)
    assert not (tmp_path / "runs").exists()


def test_a_classifier_of_other_classes_is_refused(runs, tmp_path):
    root = plant(tmp_path / "images", {"train": {"ant": 1, "bee": 1}, "test": {"ant": 1, "bee": 1}})
    save = tmp_path / "other.safetensors"
    save_classifier(
        named_classifier("timm:test_resnet/random", Labels(tuple(map(str, range(1000))))), save
    )
    with pytest.raises(InputError, match="the same classes"):
        compare([str(runs[0]), str(save)], str(tmp_path / "out"), SETS)
    with pytest.raises(InputError, match="Expected 10 classes"):
        compare([str(runs[0])], str(tmp_path / "out"), ["folders"], str(root))


def test_a_report_of_the_same_protocol_joins_a_comparison(runs, tmp_path):
    old = compare(["open_clip:tiny-clip"], str(tmp_path / "old"), SETS, images=30)
    path = str(tmp_path / "old" / "report.json")
    report = compare([str(runs[0]), path], str(tmp_path / "new"), SETS, images=30)
    assert report.models[-1] == "open_clip:tiny-clip"
    assert report.value("open_clip:tiny-clip", "id") == old.value("open_clip:tiny-clip", "id")
    with pytest.raises(InputError, match="at least one model"):
        compare([path], str(tmp_path / "new"), SETS)
    again = joined(report, old, "old")
    assert again.models[-1] == "old: open_clip:tiny-clip"
    assert again.details["old: open_clip:tiny-clip"] == old.details["open_clip:tiny-clip"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 20}, "20 for images of digits/id, not 30"),
        ({"seed": 1}, "seed 1"),
        ({"shifts": ["digits/id"]}, "has the sets digits/id, not digits/id, digits/sketch"),
        ({"precision": "bf16"}, "'bf16' for precision"),
    ],
)
def test_a_report_of_another_protocol_is_refused(tmp_path, options, said):
    usual = {"shifts": SETS, "images": 30}
    ours = compare(["open_clip:tiny-clip"], str(tmp_path / "a"), **usual)
    theirs = compare(["open_clip:tiny-clip"], str(tmp_path / "b"), **{**usual, **options})
    with pytest.raises(InputError, match="same protocol") as caught:
        joined(ours, theirs, "b/report.json")
    assert said in str(caught.value)
    assert "b/report.json" in str(caught.value)


def test_the_classes_of_a_named_classifier_are_those_of_the_sets(tmp_path):
    assert labels_of(["digits/id"], None) == Labels(digits.CLASS_NAMES, digits.TEMPLATES)
    found = labels_of(["imagenet/val"], None)
    assert len(found.names) == 1000
    assert (found.names[0], found.names[999]) == ("tench", "toilet paper")
    sets = {"test": {"red_plum": 1, "ant": 1}, "train": {"red_plum": 1, "ant": 1, "bee": 1}}
    root = plant(tmp_path / "a", sets)
    assert labels_of(["folders"], root).names == ("ant", "bee", "red plum")
    assert labels_of(["folders"], plant(tmp_path / "b", {"test": {"ant": 1}})).names == ("ant",)
    with pytest.raises(InputError, match="data_root"):
        labels_of(["folders"], None)


def test_a_data_root_behind_a_url_is_refused_before_a_model_is_made(tmp_path):
    url = "https://example.org/shards"
    with pytest.raises(InputError, match=f"a folder on this machine, but got {url}; fetch"):
        compare(["open_clip:tiny-clip"], str(tmp_path), ["folders"], url)
    with pytest.raises(InputError, match=url):
        Request(url)


def test_named_classifiers_are_of_their_families():
    labels = Labels(tuple(map(str, range(1000))))
    timm = named_classifier("timm:test_resnet/random", labels)
    assert (timm.name, timm.spec.head) == ("test_resnet", "own")
    clip = named_classifier("open_clip:tiny-clip/random", Labels(("a", "b")))
    assert clip.class_names == ("a", "b")
    assert len(clip.spec.options["templates"]) == 80


def test_class_names_of_a_run_serve_the_named_ones(runs):
    def never():
        return Labels(("wrong",), ("{}",))

    models = models_of([str(runs[0]), "open_clip:tiny-clip"], [], never).models
    assert models["open_clip:tiny-clip"].class_names == digits.CLASS_NAMES


def test_incomplete_sets_are_marked_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plant_one(tmp_path / "data", "sketch")
    args = ["timm:test_resnet/random", "--shifts", '["imagenet/sketch"]', "--data_root=data"]
    with pytest.raises(SystemExit):
        evaluate_run(args)
    assert "allow_incomplete" in capsys.readouterr().err
    evaluate_run([*args, "--allow_incomplete=true"])
    printed = capsys.readouterr().out
    assert "sketch*" in printed
    assert "* sketch is not whole: " in printed


def configured(runs, folder: Path, evaluation: object) -> str:
    """A run folder with other settings of its evaluation."""
    import shutil

    shutil.copytree(runs[0], folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": evaluation}))
    return str(folder)


def test_a_run_from_elsewhere_does_not_say_where_to_write(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    settings = {"shifts": ["digits/id"], "images": 5, "pictures": 0, "out": str(elsewhere)}
    run = configured(runs, tmp_path / "run", {**settings, "what": [str(runs[1])]})
    (tmp_path / "run" / "report.json").unlink(missing_ok=True)
    evaluate_run([run])
    assert not elsewhere.exists()
    report = ShiftReport.load(tmp_path / "run" / "report.json")
    assert report.models == ["zero-shot", "WiSE-FT 0.5", "tuned"]
    evaluate_run([run, "--out", str(tmp_path / "here")])
    assert (tmp_path / "here" / "report.json").is_file()
    assert not (tmp_path / "runs").exists()


USUAL = "AttentionRelevance(), the default of its architecture"


@pytest.mark.parametrize(
    ("relevance", "said"),
    [
        ({"class_path": "cfmask.AttentionRollout"}, "AttentionRollout(), as the run has it"),
        ({"class_path": "lies_here.Mine"}, f"{USUAL}, because that of the run cannot be made here"),
        (None, f"{USUAL};"),
    ],
)
def test_the_page_explains_as_the_run_does(runs, tmp_path, relevance, said, monkeypatch):
    run = Path(configured(runs, tmp_path / "run", {}))
    (run / "lies_here.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(run)
    model = {"init_args": {"relevance": relevance}}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    compare([str(run)], None, SETS[1:], wise="", images=60, pictures=1)
    assert f"for the true class, by {said}" in (run / "report.html").read_text()
    assert "lies_here" not in sys.modules


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ([], "under evaluation"),
        (None, "under evaluation"),
        ("x", "under evaluation"),
        ({"shfts": ["digits"]}, "'shfts'. Nearest: shifts"),
        ({"shifts": 5}, "shifts"),
        ({"images": [1]}, "images"),
        ({3: 4}, "'3'"),
    ],
)
def test_settings_of_a_run_that_are_none_are_one_line(runs, tmp_path, evaluation, said, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate_run([configured(runs, tmp_path / "run", evaluation)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_an_older_config_still_evaluates(runs, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    old = {"shifts": ["digits/id"], "images": 10, "alphas": [0.25]}
    (copy / "config.yaml").write_text(yaml.safe_dump({"evaluation": old}))
    evaluate_run([str(copy)])
    assert "WiSE-FT 0.25" in ShiftReport.load(copy / "report.json").models
