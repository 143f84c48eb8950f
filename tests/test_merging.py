"""Models merged after training, against closed forms in numpy and against slow versions."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from support.exported import plant_run, start, tuned

from cfmask import (
    DigitsData,
    InputError,
    ShiftReport,
    greedy_soup,
    interpolate,
    load_classifier,
    model_stock,
    save_classifier,
    tpgm,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS, average
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.main import main
from cfmask.commands.merge_models import merge_models
from cfmask.data.datamodule import digits_tensors
from cfmask.exporting.writing import export
from cfmask.merging.merge import MERGERS, By, merge

# With batch norm, and a smaller one.
MODEL, SMALL = "test_resnet", "test_vit"


def arrays(classifier) -> dict[str, np.ndarray]:
    return {k: v.double().numpy() for k, v in classifier.state_dict().items()}


def test_model_stock_is_the_formula_tensor_by_tensor():
    models = [tuned(MODEL, seed) for seed in range(3)]
    merged, shares = model_stock(start(MODEL), models)
    old, states, found = arrays(start(MODEL)), [arrays(m) for m in models], arrays(merged)
    assert 0 < min(shares.values()) <= max(shares.values()) <= 1
    for name, value in merged.state_dict().items():
        if not value.is_floating_point():
            continue
        deltas = [(state[name] - old[name]).ravel() for state in states]
        cosines = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in ((deltas[0], deltas[1]), (deltas[0], deltas[2]), (deltas[1], deltas[2]))
        ]
        cosine = np.mean(cosines)
        share = 3 * cosine / (1 + 2 * cosine)
        expected = share * np.mean([s[name] for s in states], 0) + (1 - share) * old[name]
        assert shares[name] == pytest.approx(share, abs=1e-6)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_model_stock_of_two_is_the_papers_ratio_and_is_guarded():
    one, other = copy.deepcopy(start(MODEL)), copy.deepcopy(start(MODEL))
    with torch.no_grad():
        # Opposed in the weight, at 60 degrees in the first two numbers of the bias.
        one.head.weight += 1
        other.head.weight -= 0.5
        one.head.bias[0] += 2
        other.head.bias[:2] += torch.tensor([0.5, 3**0.5 / 2])
    merged, shares = model_stock(start(MODEL), [one, other])
    assert shares["head.weight"] == 0
    assert torch.equal(merged.head.weight, start(MODEL).head.weight)
    assert shares["head.bias"] == pytest.approx(2 * 0.5 / 1.5)
    bias = start(MODEL).head.bias.detach()
    moved = torch.tensor([2.5 / 2, 3**0.5 / 4]) * 2 / 3
    assert torch.allclose(merged.head.bias[:2].detach(), bias[:2] + moved, atol=1e-6)
    # Nobody has moved the encoder, which stays exactly.
    assert all(s == 1 for name, s in shares.items() if not name.startswith("head"))
    kept = merged.encoder.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in start(MODEL).encoder.state_dict().items())
    same, shares = model_stock(start(MODEL), [one, one])
    assert shares["head.bias"] == pytest.approx(1)
    assert torch.allclose(same.head.bias, one.head.bias)
    with pytest.raises(InputError, match="at least 2 models"):
        model_stock(start(MODEL), [one])


def test_the_greedy_soup_is_that_of_the_slow_version():
    """Scores are a function of the head's bias, so that all subsets can be tried by hand."""
    models = []
    for value in (0.0, 4.0, 1.0, 3.0, 1.0):
        models.append(copy.deepcopy(start(MODEL)))
        with torch.no_grad():
            models[-1].head.bias.fill_(value)
    asked = []

    def score(model) -> float:
        asked.append(float(model.head.bias[0].detach()))
        return -abs(asked[-1] - 1.75)

    soup, kept, alone = greedy_soup(models, score)
    values, means = [0.0, 4.0, 1.0, 3.0, 1.0], []
    # Best alone: 1.0 (0.75 away), then the other 1.0, which changes nothing and is not added; 3.0
    # makes 2.0, 0.25 away, and is added; 0.0 makes 4/3 and is not; 4.0 makes 8/3 and is not.
    assert kept == [2, 3]
    assert soup.head.bias[0].item() == 2.0
    assert alone == [-abs(value - 1.75) for value in values]
    assert len(asked) == 9
    means = asked[5:]
    assert means == pytest.approx([1.0, 2.0, 4 / 3, 8 / 3])
    with pytest.raises(InputError, match="at least one"):
        greedy_soup([], score)


def test_tpgm_is_the_released_algorithm_step_by_step():
    """Against a loop over tensors in float64, with an Adam of its own."""
    old, new = copy.deepcopy(start(MODEL)).double(), tuned(MODEL).double()
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(4, 3, 96, 96, generator=rng, dtype=torch.float64), torch.arange(4) + k)
        for k in range(2)
    ]
    merged, shares = tpgm(old, new, batches, steps=3, lr=0.5)
    begin = {k: v.detach() for k, v in old.named_parameters()}
    delta = {k: v.detach() - begin[k] for k, v in new.named_parameters()}
    length = {k: v.pow(2).sum().sqrt() for k, v in delta.items()}
    radius = {k: v / 2 for k, v in length.items()}
    first, second = dict.fromkeys(radius, 0.0), dict.fromkeys(radius, 0.0)
    slow = copy.deepcopy(new)
    for step, (images, labels) in enumerate([*batches, batches[0]], 1):
        with torch.no_grad():
            for k, weight in slow.named_parameters():
                weight.copy_(begin[k] + min(1.0, float(radius[k] / length[k])) * delta[k])
        slow.zero_grad()
        F.cross_entropy(slow(images), labels).backward()
        for k, weight in slow.named_parameters():
            slope = (weight.grad * delta[k]).sum() / length[k]
            first[k] = 0.9 * first[k] + 0.1 * slope
            second[k] = 0.999 * second[k] + 0.001 * slope**2
            mean, square = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            radius[k] = (radius[k] - 0.5 * mean / (square.sqrt() + 1e-8)).clamp(1e-8, length[k])
    expected = {k: float(radius[k] / length[k]) for k in radius}
    assert shares == pytest.approx(expected, abs=1e-5)
    assert len({round(share, 3) for share in shares.values()}) > 5
    for k, value in merged.named_parameters():
        torch.testing.assert_close(value, begin[k] + expected[k] * delta[k], atol=1e-5, rtol=1e-5)
    kept = dict(new.named_buffers())
    assert all(torch.equal(v, kept[k]) for k, v in merged.named_buffers())
    with pytest.raises(InputError, match="there are none"):
        tpgm(old, new, [], steps=1)
    assert tpgm(old, old, [], steps=1)[1] == {}


DATA = {"class_path": "cfmask.DigitsData", "init_args": {"train_images": 2, "val_images": 20}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second", "third run")):
        folder = plant_run(root / name, SMALL, seed)
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_classifier(path).state_dict()


def assert_same(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


@pytest.mark.slow
def test_the_command_writes_what_other_commands_read(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("first", "second", "third run")]
    out = tmp_path / "soup one"
    merge_models([*names, "--by", "uniform", "--out", str(out)])
    assert f"{out}/: mean of 3 models. Loaded back" in capsys.readouterr().out
    mean = {k: np.mean([arrays(load_classifier(n))[k] for n in names], 0) for k in weights(out)}
    for name, value in weights(out).items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), mean[name], rtol=1e-5, atol=1e-6)
    sets = ["--shifts", "digits/id", "--images=10", "--pictures=0", f"--out={tmp_path / 'report'}"]
    evaluate_run([str(out), *sets])
    assert ShiftReport.load(tmp_path / "report" / "report.json").models == [str(out)]
    export(str(out), "timm", str(tmp_path / "timm"))
    # What was merged can be merged again.
    merge([str(out), names[0]], "uniform", str(tmp_path / "again"))
    assert_same(
        weights(tmp_path / "again"),
        average(list(map(load_classifier, (out, names[0])))).state_dict(),
    )
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["weights"] == "mean of 3 models"
    assert facts["merged"] == {"by": "uniform", "of": names}
    assert [run["name"] for run in facts["runs"]] == ["first", "second", "third run"]


def test_wise_and_stock_begin_at_the_start_of_the_runs(runs, tmp_path):
    first, second = str(runs / "first"), str(runs / "second")
    merge([first], "wise", str(tmp_path / "wise"), alpha=0.3)
    expected = interpolate(start(SMALL), tuned(SMALL, 0), 0.3).state_dict()
    assert_same(weights(tmp_path / "wise"), expected)
    merge([first, second], "stock", str(tmp_path / "stock"))
    expected = model_stock(start(SMALL), [tuned(SMALL, 0), tuned(SMALL, 1)])[0].state_dict()
    assert_same(weights(tmp_path / "stock"), expected)
    files = [str(runs / name / WEIGHTS) for name in ("first", "second")]
    begin = str(runs / "first" / PRETRAINED)
    merge(files, "stock", str(tmp_path / "files"), start=begin)
    assert_same(weights(tmp_path / "files"), expected)


def test_greedy_and_tpgm_read_the_validation_images_alone(runs, tmp_path, capsys, monkeypatch):
    names = [str(runs / name) for name in ("first", "second", "third run")]
    merge_models([*names, "--by=greedy", f"--out={tmp_path / 'greedy'}", "--batch_size=16"])
    val = digits_tensors("val", 20, 0, (48, 48))
    loaded = list(map(load_classifier, names))

    @torch.no_grad()
    def accuracy(model) -> float:
        hits = model(val.images.float() / 255).argmax(1) == val.labels
        return float(hits.double().mean())

    expected, kept, alone = greedy_soup(loaded, accuracy)
    assert_same(weights(tmp_path / "greedy"), expected.state_dict())
    facts = json.loads((tmp_path / "greedy" / "provenance.json").read_text())
    assert facts["merged"]["kept"] == [names[k] for k in kept]
    assert facts["merged"]["validation accuracy"] == pytest.approx(dict(zip(names, alone)))
    assert facts["weights"] == f"greedy soup of {len(kept)} of 3 models"
    assert f"{100 * alone[0]:.1f} % on the validation images" in capsys.readouterr().out
    monkeypatch.setattr("cfmask.merging.merge.tpgm", partial(tpgm, steps=4, lr=0.1))
    merge(names[:1], "tpgm", str(tmp_path / "tpgm"))
    facts = json.loads((tmp_path / "tpgm" / "provenance.json").read_text())
    shares = facts["merged"]["weights of tensors"]
    assert set(shares) == {name for name, _ in start(SMALL).named_parameters()}
    assert len({round(share, 2) for share in shares.values()}) > 3

    def loss(model) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(val.images.float() / 255), val.labels))

    half = interpolate(start(SMALL), tuned(SMALL, 0), 0.5).eval()
    assert loss(load_classifier(tmp_path / "tpgm")) < loss(half)


def refused(*args: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        merge(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_merged_is_refused_in_one_line(runs, tmp_path):
    out, first, second = str(tmp_path / "out"), str(runs / "first"), str(runs / "second")
    fewer = copy.deepcopy(load_classifier(first))
    fewer.spec = replace(fewer.spec, class_names=tuple(f"c{k}" for k in range(10)))
    save_classifier(fewer, tmp_path / "names.safetensors")
    assert "class names" in refused([first, str(tmp_path / "names.safetensors")], "uniform", out)
    plant_run(tmp_path / "vit", "test_resnet")
    assert "differ in" in refused([first, str(tmp_path / "vit")], "uniform", out)
    begun = plant_run(tmp_path / "begun", SMALL, 5)
    moved = copy.deepcopy(start(SMALL))
    with torch.no_grad():
        moved.head.bias += 1
    save_classifier(moved, begun / PRETRAINED)
    said = refused([first, str(begun)], "uniform", out)
    assert "one starting point" in said
    assert "head.bias" in said
    assert "each model once" in refused([first, f"{first}/"], "uniform", out)
    assert "at least 2 models for greedy" in refused([first], "greedy", out)
    files = [f"{first}/{WEIGHTS}", f"{second}/{WEIGHTS}"]
    assert "--start FILE" in refused(files, "stock", out)
    assert "weights files alone" in refused(files, "greedy", out)
    assert "--alpha" in refused([first], "wise", out)
    assert "--alpha" in refused([first, second], "uniform", out, alpha=0.5)
    assert "alpha in [0, 1]" in refused([first], "wise", out, alpha=1.5)
    assert "Nearest: greedy" in refused([first, second], "greed", out)
    assert "seed from 0" in refused([first], "tpgm", out, seed=1 << 32)
    assert "is a file" in refused([first, second], "uniform", f"{tmp_path}/names.safetensors/x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "other files" in refused([first, second], "uniform", str(tmp_path / "full"))
    for folder, files in ((first, "a"), (second, "b")):
        (Path(folder) / "cfmask.json").write_text(
            json.dumps({"made by": "cfmask 0.1", "images": {"files": files}})
        )
    assert "same training and validation images" in refused([first, second], "greedy", out)
    # Both had the same images, which are others now.
    (Path(second) / "cfmask.json").write_bytes((Path(first) / "cfmask.json").read_bytes())
    assert "images of the run in" in refused([first, second], "greedy", out)
    for folder in (first, second):
        (Path(folder) / "cfmask.json").unlink()
    assert not Path(out).exists()


def test_every_way_of_merging_is_offered():
    assert set(MERGERS) == set(By.__args__)
    assert DigitsData(**DATA["init_args"]).val_images == 20


def test_the_lines_of_the_page_run(runs, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    lines = re.findall(r"^cfmask (merge .*)$", page, re.M)
    assert len(lines) == 4
    (tmp_path / "runs").mkdir()
    for name, run in {"demo": "first", "second": "second", "third": "third run"}.items():
        (tmp_path / "runs" / name).symlink_to(runs / run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cfmask.merging.merge.tpgm", partial(tpgm, steps=1))
    for line in lines:
        main(line.split())
    made = {path.parent.name for path in tmp_path.glob(f"exported/*/{WEIGHTS}")}
    assert made == {line.split("/")[-1] for line in lines}
