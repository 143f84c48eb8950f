"""The last layer fitted anew to curated images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support.runs import plant_run
from support.training import photos
from torch import nn

from cfmask import InputError, TimmClassifier, digits, load_classifier
from cfmask.checkpoint import WEIGHTS, save_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.main import main
from cfmask.data.datamodule import digits_tensors
from cfmask.data.folders import Folder, hold_out
from cfmask.heads import fit_linear_head
from cfmask.merging.refit import equal_weights, refit
from cfmask.shifts.digits_world import TIED

NAMES = ["lemon", "lime", "red plum"]


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_of_images_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=90)
    features = 3 * rng.standard_normal((90, 5)) + labels[:, None] * rng.standard_normal(5)
    weights = rng.uniform(0.2, 3, 90)
    weights /= weights.mean()
    head = nn.Linear(5, classes)
    given = (torch.tensor(x) for x in (features.astype(np.float32), labels, weights))
    fit_linear_head(head, *given)
    scale = np.sqrt(np.square(features).mean())
    solver = LogisticRegression(tol=1e-8, max_iter=5000)
    solver.fit(features / scale, labels, sample_weight=weights)
    with torch.no_grad():
        found = head(torch.tensor(features).float()).double().softmax(1)
    np.testing.assert_allclose(found, solver.predict_proba(features / scale), atol=1e-4)
    unweighted = solver.fit(features / scale, labels).predict_proba(features / scale)
    assert np.abs(found.numpy() - unweighted).max() > 0.01


def test_groups_weigh_alike_whatever_their_numbers():
    groups = torch.tensor([0, 3, 3, 3, 1, 1, 0, 3])
    weights = equal_weights(groups)
    sums = {k: float(weights[groups == k].sum()) for k in (0, 1, 3)}
    assert sums == pytest.approx(dict.fromkeys((0, 1, 3), 8 / 3))
    assert all(len(set(weights[groups == k].tolist())) == 1 for k in (0, 1, 3))


def scenes(root: Path) -> Path:
    """Two groups of 30 and 12 pictures of three classes."""
    photos(root / "photos")
    (root / "scenes").mkdir()
    for group, part in (("indoor", "train"), ("outdoor", "sketches")):
        (root / "photos" / part).rename(root / "scenes" / group)
    return root / "scenes"


def model(path: Path) -> TimmClassifier:
    torch.manual_seed(0)
    classifier = TimmClassifier("test_resnet", False, NAMES, image_size=32).eval()
    save_classifier(classifier, path)
    return classifier


@torch.no_grad()
def test_the_layer_is_that_of_the_images_that_are_not_held_out(tmp_path, capsys):
    data, classifier = scenes(tmp_path), model(tmp_path / "a.safetensors")
    words = [f"--data={data}", f"--out={tmp_path / 'out'}", "--groups=true", "--holdout=0.5"]
    main(["refit", str(tmp_path / "a.safetensors"), *words])
    printed = capsys.readouterr().out
    assert "of 15 images" in printed and "of 6 images" in printed
    made = load_classifier(tmp_path / "out")
    assert made.spec.head == "linear" and made.head_from == "probe"
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, made.encoder.state_dict()[name])
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert told["merged"]["fitted to"] == told["merged"]["held out"] == 21
    # All images in the order of the set: group by group, class by class.
    images, labels, groups = [], [], []
    folders = ["lemon", "lime", "red_plum"]
    for k, group in enumerate(("indoor", "outdoor")):
        own = Folder(data / group, classifier.preprocess, folders)
        images += [own[i][0] for i in range(len(own))]
        labels += own.labels.tolist()
        groups += [k] * len(own)
    features = classifier.features(torch.stack(images).float() / 255).double()
    labels, groups = np.array(labels), np.array(groups)
    right = np.array([len(labels[(labels == c) & (groups == g)]) for c in range(3) for g in (0, 1)])
    assert right.tolist() == [10, 4] * 3
    report = told["report"]
    (name,) = report["protocol"]["sets"]
    details = report["details"]
    assert details["before"][name]["groups"]["total"] == [15, 6]
    assert details["after"][name]["classes"]["total"] == [7, 7, 7]
    strata = torch.tensor(groups * 3 + labels)
    kept, held = (x.numpy() for x in hold_out(strata, 21, 0))
    weights = np.where(groups[kept] == 0, 21 / 2 / 15, 21 / 2 / 6)
    scale = np.sqrt(np.square(features[kept].numpy()).mean())
    solver = LogisticRegression(tol=1e-8, max_iter=5000)
    solver.fit(features[kept].numpy() / scale, labels[kept], sample_weight=weights)
    expected = solver.predict_proba(features.numpy() / scale)
    found = made.head(features.float()).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    for row, logits in (("before", classifier.head(features.float())), ("after", found)):
        hits = np.asarray(logits).argmax(1)[held] == labels[held]
        assert sum(details[row][name]["groups"]["correct"]) == hits.sum(), row


@pytest.mark.slow
def test_a_zero_shot_run_becomes_a_linear_model_that_eval_takes_beside_it(tmp_path, tiny_clip):
    plant_run(tmp_path / "run", tiny_clip)
    made = refit(str(tmp_path / "run"), "digits/contexts", str(tmp_path / "out"), images=400)
    assert made.report is not None
    before, after = (
        made.report.value(row, "digits/contexts held out") for row in ("before", "after")
    )
    assert after > before
    other = load_classifier(tmp_path / "out")
    assert isinstance(other.head, nn.Linear)
    drawn = digits_tensors("id", 400, 0, (48, 48), tied=TIED)
    with torch.no_grad():
        right = other(drawn.images / 255).argmax(1) == drawn.labels
    assert right.float().mean() > before
    words = ["--shifts=digits/id", "--images=20", "--pictures=0", f"--out={tmp_path / 'both'}"]
    report = evaluate_run([str(tmp_path / "run"), str(tmp_path / "out"), *words])
    assert report is not None and str(tmp_path / "out") in report.models


@pytest.mark.parametrize(
    ("data", "words", "more"),
    [
        ("whole", "holds test; name that", {}),
        ("whole/test", "'lime' has none", {}),
        ("whole/train", "groups in whole/train to weigh alike", {"groups": True}),
        ("whole/train", r"holdout in \(0, 1\)", {"holdout": 1.0}),
        ("digits", "other classes", {}),
        ("nothing", "unknown|nothing", {}),
    ],
)
def test_what_no_layer_can_be_fitted_to_is_one_line(data, words, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(Path("a.safetensors"))
    photos(Path("whole"))
    for picture in Path("whole/test/lime").iterdir():
        picture.rename(Path("whole/test/lemon") / f"lime{picture.name}")
    Path("whole/test/lime").rmdir()
    with pytest.raises(InputError, match=words):
        refit("a.safetensors", data, "out", **more)
    assert not Path("out").exists()


def test_several_sets_and_heads_of_no_features_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    classifier = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=32).eval()
    save_classifier(classifier, Path(WEIGHTS))
    with pytest.raises(InputError, match=r"digits/id.* name one of them"):
        refit(WEIGHTS, "digits", "out")
    with pytest.raises(InputError, match="outside of data"):
        Path("data").mkdir()
        refit(WEIGHTS, "data", "data/out")
