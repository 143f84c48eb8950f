"""Removal curves against slow versions in plain Python and NumPy."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import convolve1d
from skimage import data as photographs
from skimage.segmentation import quickshift, slic
from support.evaluation import in_processes
from support.removal import TINY, fails

from cfmask import InputError, Preprocess, TimmClassifier
from cfmask.commands.main import main
from cfmask.missingness.curves import curve, entropies, mean, measured, resampled
from cfmask.missingness.findings import Findings
from cfmask.missingness.hiding import GREY, HIDINGS
from cfmask.missingness.lab import missingness
from cfmask.missingness.object_masks import Example, MaskedDigits
from cfmask.missingness.removal import Removal
from cfmask.missingness.sections import CurveRow
from cfmask.missingness.segments import cutters, hidden_by_degree, numbered, order_of


@pytest.fixture
def hidden() -> torch.Tensor:
    """Rectangles that are no patches, bool (8, 48, 48)."""
    flags = torch.zeros(8, 48, 48, dtype=torch.bool)
    for k in range(8):
        flags[k, 3 * k : 3 * k + 14, 20 - k : 37] = True
    return flags


class Sees(torch.nn.Module):
    """In place of a classifier: gives the images themselves."""

    def features(self, images):
        return images


def slow_colour(way: str, images: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    colours = {"black": (0, 0, 0), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    made = images.copy()
    for k in range(len(images)):
        colour = colours.get(way, GREY) if way != "average" else images[k].mean((1, 2))
        for c in range(3):
            made[k, c][hidden[k]] = images[k - 1, c][hidden[k]] if way == "refill" else colour[c]
    if way == "smoothed":
        kernel = np.exp(-(np.arange(-2, 3) ** 2) / 2)
        kernel /= kernel.sum()
        blurred = convolve1d(convolve1d(made, kernel, 2, mode="mirror"), kernel, 3, mode="mirror")
        made = np.where(hidden[:, None], blurred, made)
    return made


@pytest.mark.parametrize(
    "way", ["black", "grey", "average", "red", "green", "blue", "smoothed", "refill"]
)
def test_what_is_hidden_by_a_picture_equals_a_slow_version(way, digit_batch, hidden):
    images = digit_batch[0].double()
    made = HIDINGS[way](Sees(), images, hidden)
    expected = slow_colour(way, images.numpy(), hidden.numpy())
    assert np.abs(made.numpy() - expected).max() < 1e-6


@torch.no_grad()
def test_a_transformer_keeps_the_patches_that_are_visible_as_wholes(tiny_clip, digit_batch, hidden):
    images = digit_batch[0]
    patches = F.max_pool2d(hidden.float().unsqueeze(1), 8)[:, 0] > 0
    assert 0 < patches.float().mean() < 1
    got = HIDINGS["removed"](tiny_clip, images, hidden)
    assert torch.allclose(got, tiny_clip.features(images, patches), atol=1e-5)
    noise = torch.where(patches.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1),
                        torch.rand_like(images), images)  # fmt: skip
    assert torch.allclose(got, HIDINGS["removed"](tiny_clip, noise, hidden), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["open_clip", "timm"])
def test_dropped_tokens_and_excluded_keys_give_one_class_token(
    family, tiny_clip, digit_batch, hidden
):
    images, model = digit_batch[0], tiny_clip
    if family == "timm":
        model = TimmClassifier("test_vit", False, ["a", "b"], image_size=48).eval()
    patches = hidden.clone()
    # As many in every image, so that tokens can be dropped.
    patches[:] = hidden[0]
    kept = []
    drop = type(model).encode_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(model),
            "encode_tokens",
            lambda self, x, tokens: kept.append(tokens.shape[1]) or drop(self, x, tokens),
        )
        dropped = HIDINGS["removed"](model, images, patches)
        excluded = HIDINGS["excluded"](model, images, patches)
    assert len(kept) == 1 and 1 < kept[0] < 1 + model.grid[0] * model.grid[1]
    assert torch.allclose(dropped, excluded, atol=1e-5)
    assert not torch.allclose(dropped, model.features(images), atol=1e-3)


@torch.no_grad()
def test_a_cnn_hides_pixels_by_layer_masking(small_cnn):
    images = torch.rand(2, 3, 96, 96)
    hidden = torch.zeros(2, 96, 96, dtype=torch.bool)
    hidden[:, 11:70, 5:50] = True
    small_cnn.eval()
    noise = torch.where(hidden.unsqueeze(1), torch.rand_like(images), images)
    for way in ("removed", "no_padding", "partial_convolution"):
        got = HIDINGS[way](small_cnn, images, hidden)
        assert torch.allclose(got, HIDINGS[way](small_cnn, noise, hidden), atol=1e-5)
        assert not torch.allclose(got, small_cnn.features(images), atol=1e-3)
    with pytest.raises(InputError, match="Expected a transformer"):
        HIDINGS["excluded"](small_cnn, images, hidden)


def cut(pixels: np.ndarray, kind: str) -> np.ndarray:
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    (cutter,) = cutters([kind], 16, 500, Preprocess(image.shape[1:])).values()
    return cutter(Example("x", image, 0, None))


def test_segments_are_those_of_scikit_image():
    pixels = photographs.chelsea()[60:220:2, 100:260:2]
    image = pixels / 255
    for kind, made in (
        ("slic", slic(image, n_segments=100, compactness=10)),
        ("quickshift", quickshift(image, kernel_size=4, max_dist=200, ratio=0.2, rng=0)),
    ):
        found = cut(pixels, kind)
        pairs = set(zip(found.ravel().tolist(), made.ravel().tolist()))
        assert len(pairs) == found.max() + 1 == len(np.unique(made)) > 3
        assert found.min() == 0
    patches = cut(pixels, "patches")
    assert patches.tolist() == [[r // 16 * 5 + c // 16 for c in range(80)] for r in range(80)]
    assert numbered(np.array([[7, 3], [3, 9]])).tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("order", ["random", "most", "least"])
def test_what_is_hidden_by_degree_equals_a_slow_version(order):
    rng = np.random.default_rng(1)
    labels, saliency = rng.integers(0, 7, (12, 12)), rng.random((12, 12))
    labels[:, 0] = np.arange(12) % 7
    found = order_of(labels, saliency, order, (3, 4))
    assert sorted(found) == list(range(7))
    sums = [saliency[labels == s].sum() for s in found]
    if order != "random":
        assert sums == sorted(sums, reverse=order == "most")
    else:
        assert (order_of(labels, None, order, (3, 4)) == found).all()
        assert any((order_of(labels, None, order, (3, k)) != found).any() for k in range(5, 9))
    hidden = hidden_by_degree(labels, found, 10)
    for k in range(11):
        gone = set(found[: math.floor(k * 7 / 10)])
        assert hidden[k].tolist() == [[s in gone for s in row] for row in labels]


def test_curves_equal_a_version_by_counting():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 5, (30, 4)), rng.integers(0, 5, 30)
    between = rng.random((5, 5))
    found = measured(predictions, labels, between, 200)
    for t in range(4):
        column = predictions[:, t].tolist()
        right = sum(p == y for p, y in zip(column, labels)) / 30
        same = sum(p == q for p, q in zip(column, predictions[:, 0])) / 30
        entropy = -sum(n / 30 * math.log(n / 30 + 1e-7) for n in Counter(column).values())
        alike = sum(between[p][y] for p, y in zip(column, labels)) / 30
        values = {"accuracy": right, "kept": same, "entropy": entropy, "similarity": alike}
        for name, value in values.items():
            one = found[name]
            assert one.values[t] == pytest.approx(value, abs=1e-9)
            assert one.low[t] - 1e-9 <= one.values[t] <= one.high[t] + 1e-9
    for one in found.values():
        assert one.area[0] == pytest.approx(np.mean(one.values))
    assert set(measured(predictions, None, between, 10)) == {"kept", "entropy"}


def test_the_interval_of_a_share_is_nearly_the_normal_one():
    answers = (np.arange(400) % 4 == 0).astype(float)[:, None]
    weights = resampled(400, 4000)
    assert (weights.sum(1) == 400).all()
    found = curve(weights @ answers / 400)
    reach = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low[0] == pytest.approx(0.25 - reach, abs=0.005)
    assert found.high[0] == pytest.approx(0.25 + reach, abs=0.005)
    below = mean(answers[:, 0] - 1, weights, 1, -1)
    assert below == pytest.approx([-0.75, -0.75 - reach, -0.75 + reach], abs=0.005)
    # Samples whose mean is below the value push their upper end beyond what a share can be.
    few = np.array([[0.9], [0.5], [1.0], [1.0], [0.6]])
    assert curve(few, 1).high[0] == curve(few, 1).area[2] == 1 < curve(few).high[0]
    one_class = np.zeros((400, 1), dtype=int)
    assert np.abs(entropies(one_class, weights[:3])).max() < 1e-6


@torch.no_grad()
def test_predictions_equal_a_slow_version(tiny_clip):
    data = MaskedDigits(count=5)
    examples = [data[k] for k in range(5)]
    tiny_clip.eval()
    cuts = cutters(["patches"], 16, 200, tiny_clip.preprocess)
    make = Removal(tiny_clip, ("grey",), cuts, ("random", "most"), None, 7)
    found = make(examples, 2)
    nested = found["patches/random/grey"]
    again = Removal(tiny_clip, ("grey",), cuts, ("random",), None, 7)(examples, 2)
    assert (nested == again["patches/random/grey"]).all()
    for k, example in enumerate(examples):
        image = example.image.double().numpy() / 255
        sums = {
            (r, c): example.saliency[r : r + 16, c : c + 16].sum().item()
            for r in (0, 16, 32)
            for c in (0, 16, 32)
        }
        order = sorted(sums, key=lambda place: -sums[place])
        for t in range(11):
            shown = image.copy()
            for r, c in order[: t * 9 // 10]:
                shown[:, r : r + 16, c : c + 16] = np.array(GREY)[:, None, None]
            answer = tiny_clip(torch.tensor(shown[None]).float()).argmax().item()
            assert found["patches/most/grey"][k, t] == answer
    assert found["labels"].tolist() == [example.label for example in examples]


def test_two_processes_find_what_one_does_and_an_interrupted_run_goes_on(
    tmp_path, monkeypatch, tiny_clip
):
    monkeypatch.setattr("cfmask.missingness.per_image.STRETCH", 1)
    ways = (("red", "grey"), ("patches",), ("random",), 16, 200, None)
    model, data = {"m": tiny_clip}, {"m": MaskedDigits(count=3)}

    def run(folder: Path, seed: int = 3) -> dict[str, Any]:
        found = missingness(
            model, data, *ways, seed=seed, samples=20, measures=(), store=folder / "answers"
        )
        (folder / "found.json").write_text(json.dumps(asdict(found)))
        return json.loads((folder / "found.json").read_text())

    in_processes(2, tmp_path / "two", lambda path: run(path.with_suffix("")))
    one = run(tmp_path / "one")
    assert len(list((tmp_path / "one" / "answers").iterdir())) == 3
    for name in ("0", "1"):
        assert json.loads((tmp_path / "two" / name / "found.json").read_text()) == one
    assert [(row["order"], row["hiding"]) for row in one["removal"]] == [
        ("random", way) for way in ("red", "grey")
    ]
    answered = Removal.__call__
    left = [1]

    def mortal(*args: Any) -> Any:
        left[0] -= 1
        assert left[0] >= 0, "killed"
        return answered(*args)

    monkeypatch.setattr(Removal, "__call__", mortal)
    for kept in (1, 2):
        left[0] = 1
        with pytest.raises(AssertionError, match="killed"):
            run(tmp_path / "again")
        assert len(list((tmp_path / "again" / "answers").iterdir())) == kept
    left[0] = 1
    assert run(tmp_path / "again") == one
    with pytest.raises(AssertionError, match="killed"):
        run(tmp_path / "one", seed=4)
    damaged = next((tmp_path / "one" / "answers").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-8])
    left[0] = 1
    assert run(tmp_path / "one") == one


def test_the_command_prints_and_draws(tmp_path, capsys):
    options = [
        "--data=digits",
        "--images=3",
        "--samples=10",
        "--orders=random",
        f"--out={tmp_path}",
    ]
    main(["missingness", TINY, *options])
    printed = capsys.readouterr().out
    assert "hidden by" in printed and "removed" in printed and f"{tmp_path}/" in printed
    for name in ("accuracy", "kept", "entropy"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 200
    assert (tmp_path / "missingness.html").read_text().count('<svg class="chart"') >= 3


def test_a_model_that_answers_one_class_to_everything_is_drawn(tmp_path, recwarn):
    curves = measured(np.zeros((4, 3), dtype=int), None, None, 5)
    assert curves["entropy"].values[2] < 0
    found = Findings({"models": {}, "samples": 5}, [CurveRow("m", "x", "random", "grey", curves)])
    *_, path = found.save(tmp_path)
    assert not [str(w.message) for w in recwarn if "constrained" in str(w.message)]
    assert path.name == "entropy.png" and path.stat().st_size > 1000


def test_wrong_input_is_one_line(tmp_path, capsys, monkeypatch):
    out = f"--out={tmp_path / 'out'}"
    assert "Unknown way of hiding 'gray'. Nearest: grey" in fails(
        capsys, TINY, "--data=digits", "--hidings=gray"
    )
    assert "Unknown segmentation" in fails(capsys, TINY, "--data=digits", "--segments=slick")
    assert "Expected --data to be a folder" in fails(capsys, TINY, "--data=nowhere")
    assert "Expected each model once" in fails(capsys, TINY, TINY, "--data=digits")
    for words, said in (
        (["--images=-1"], "at least 0 images"),
        (["--seed=-1", "--images=2"], "seed from 0"),
        (["--masks=masks"], "Expected no --masks for digits"),
        ([f"--out={__file__}"], "is a file"),
        ([f"--data={tmp_path}", f"--out={tmp_path / 'found'}"], "outside of"),
    ):
        assert said in fails(capsys, TINY, "--data=digits", out, *words)
    assert not list(tmp_path.iterdir())
    assert "Unknown class 'elevn'" in fails(capsys, TINY, "--data=digits", "--bars=one,elevn")
    small = [TINY, "--data=digits", "--images=2", "--side=2", out]
    assert "Expected at most 200 segments" in fails(capsys, *small)
    assert "48 x 48 px, but got 5; give --side 4." in fails(capsys, *small, "--side=5")
    lime = ("--side=16", "--hidings=refill", "--measures=lime")
    with monkeypatch.context() as patch:
        # Nothing is computed before it is refused.
        patch.setattr(Removal, "__call__", None)
        assert "need no other image for LIME" in fails(capsys, *small, *lime)
        said = fails(capsys, *small, "--side=16", "--wordnet=true")
        assert "which have WordNet ids" in said
        lone = [*small, "--side=16", "--images=1"]
        said = fails(capsys, *lone, "--measures=concordance")
        assert "at least 2 images for concordance, but got 1" in said
        assert "2 images for refill" in fails(capsys, *lone, "--hidings=refill")
        # Twice 16 px do not fit 48 px; 12 and 24 do.
        said = fails(capsys, *small, "--side=16", "--measures=linearity")
        assert "patches of 16 and 32 px" in said and "give --side 12, or leave" in said
    assert "Expected a CNN" in fails(capsys, *small, "--side=16", "--hidings=no_padding")
    with pytest.raises(InputError, match="at least 1 model"):
        missingness({}, {})
