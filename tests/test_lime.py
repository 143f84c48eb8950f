"""LIME, linearity, concordance and shape bias against scikit-learn and slow versions."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_distances

from cfmask import InputError, LimeRelevance, Preprocess, digits
from cfmask.commands.main import main
from cfmask.missingness import lime, lime_quality
from cfmask.missingness.features import Concordance, Linearity, concordance, linearity, windows
from cfmask.missingness.hiding import GREY
from cfmask.missingness.object_masks import MaskedDigits
from cfmask.missingness.painting import painted
from cfmask.missingness.segments import cutters
from cfmask.missingness.shape_bias import ShapeBias, shape_bias


@pytest.fixture
def examples() -> list[Any]:
    data = MaskedDigits(count=4)
    return [data[k] for k in range(4)]


def square(side: int) -> dict[str, Any]:
    return cutters(["patches"], side, 200, Preprocess((48, 48)))


def patches(side: int = 8) -> np.ndarray:
    places = np.arange(48) // side
    return places[:, None] * (48 // side) + places


@torch.no_grad()
@pytest.mark.parametrize("width, keep, ridge", [(0.25, 0.5, 1), (0.6, 0.8, 0.1)])
def test_scores_equal_scikit_learns_ridge_on_the_same_samples(
    tiny_clip, examples, width, keep, ridge
):
    image, cut = examples[0].image.double() / 255, patches()
    explainer = lime.Lime(40, width, keep, ridge)
    shown = explainer.design(36, 3)
    assert shown.shape == (40, 36) and shown[0].all()
    assert keep - 0.05 < shown[1:].mean() < keep + 0.05
    answers = []
    for row in shown:
        made = torch.where(torch.tensor(row == 0)[cut], torch.tensor(GREY).view(3, 1, 1), image)
        answers.append(tiny_clip(made[None].float()).double().softmax(1)[0, 7].item())
    distance = cosine_distances(shown, shown[:1])[:, 0]
    weights = np.sqrt(np.exp(-(distance**2) / width**2))
    expected = Ridge(alpha=ridge).fit(shown, answers, sample_weight=weights).coef_
    got = explainer.scores(tiny_clip, image.float(), cut, "grey", 7, 3)
    assert np.abs(got - expected).max() < 1e-6
    assert np.abs(expected).max() > 1e-3


def test_scores_of_the_lime_package_differ_by_sampling_noise_alone(tiny_clip, examples):
    lime_image = pytest.importorskip("lime.lime_image")
    image, cut = examples[1].image.permute(1, 2, 0).numpy() / 255, patches(12)

    @torch.no_grad()
    def answer(images: np.ndarray) -> np.ndarray:
        batch = torch.tensor(images).permute(0, 3, 1, 2).float()
        return tiny_clip(batch).softmax(1).numpy()

    k = int(answer(image[None]).argmax())
    theirs = _theirs(lime_image, image, answer, cut, k)
    ours = lime.Lime(1500).scores(
        tiny_clip, torch.tensor(image).permute(2, 0, 1).float(), cut, "grey", k, 1
    )
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97


def _theirs(module: Any, image: Any, answer: Any, cut: Any, k: int) -> np.ndarray:
    found = module.LimeImageExplainer(random_state=0).explain_instance(
        image, answer, labels=(k,), top_labels=None, hide_color=GREY, num_features=1000,
        num_samples=1500, segmentation_fn=lambda _: cut,
    )  # fmt: skip
    scores = dict(found.local_exp[k])
    return np.array([scores[s] for s in range(16)])


def test_coverage_and_jaccard_equal_slow_versions():
    rng = np.random.default_rng(0)
    cut, scores, mask = patches(12), rng.normal(size=16), rng.random((48, 48)) > 0.7
    share = [sum(mask[r, c] - mask.mean() for r in range(48) for c in range(48) if cut[r, c] == s)
             for s in range(16)]  # fmt: skip
    cosine = np.dot(scores, share) / np.linalg.norm(scores) / np.linalg.norm(share)
    assert lime_quality.coverage(scores, cut, mask) == pytest.approx(cosine, abs=1e-6)
    best = set(sorted(range(16), key=lambda s: -scores[s])[:5])
    chosen = np.array([[s in best for s in row] for row in cut])
    expected = jaccard_score(mask.ravel(), chosen.ravel())
    assert lime_quality.jaccard(scores, cut, mask, 5) == pytest.approx(expected)


def test_a_model_that_sees_one_segment_has_its_score_there(small_cnn):
    class SeesACorner(torch.nn.Module):
        class_names = ("no", "yes")

        def features(self, images, hidden=None):
            return images[:, :, :24, :24].mean((1, 2, 3))

        def classify(self, features):
            return torch.stack([torch.zeros_like(features), 9 * features], 1)

    cut = np.kron(np.arange(16).reshape(4, 4), np.ones((24, 24), int))
    scores = lime.Lime(300).scores(SeesACorner(), torch.ones(3, 96, 96), cut, "black", 1)
    assert scores.argmax() == 0
    assert scores[0] > 10 * np.abs(scores[1:]).max()
    white = np.ones((96, 96, 3))
    shown = painted(white, cut, scores, 1)
    assert shown[10, 10, 1] > shown[10, 10, 0] and (shown[60:, 60:] == 1).all()


def test_quality_counts_images_that_are_answered_rightly(tiny_clip, examples):
    tiny_clip.eval()
    make = lime_quality.LimeQuality(tiny_clip, ("grey", "black"), square(8), lime.Lime(30), 0)
    found = make(examples, 0)
    scores = lime.Lime(30).scores(
        tiny_clip, examples[2].image / 255, patches(), "grey", int(found["clean"][2]), 2
    )
    mask = examples[2].object().numpy()
    row = found["patches/grey"][2]
    assert row[0].item() == pytest.approx(lime_quality.coverage(scores, patches(), mask))
    for k, count in enumerate(lime_quality.ABLATED):
        image = examples[2].image / 255
        for s in np.argsort(-scores)[:count]:
            image = torch.where(torch.tensor(patches() == s), tiny_clip.mean[0], image)
        right = tiny_clip(image[None]).argmax().item() == examples[2].label
        assert row[2 + k].item() == right
    arrays = {name: value.numpy() for name, value in found.items()}
    arrays["clean"] = arrays["labels"].copy()
    arrays["clean"][1] += 1
    grey, black = lime_quality.lime_quality(arrays, 20)
    kept = [0, 2, 3]
    assert grey["images"] == 3
    assert grey["coverage"][0] == pytest.approx(arrays["patches/grey"][kept, 0].mean())
    wins = (arrays["patches/grey"][kept, 0] >= arrays["patches/black"][kept, 0]).mean()
    assert grey["highest coverage"] == pytest.approx(wins)
    assert grey["highest coverage"] + black["highest coverage"] >= 1
    arrays["clean"] = arrays["labels"] + 1
    assert lime_quality.lime_quality(arrays, 20) == []


def test_scores_serve_as_relevance(tiny_clip, examples):
    images = torch.stack([example.image for example in examples[:2]]) / 255
    labels = torch.tensor([example.label for example in examples[:2]])
    relevance = LimeRelevance("grey", samples=20, side=16)
    with torch.no_grad():
        logits, maps = relevance.explain(tiny_clip, images, labels)
    assert torch.allclose(logits, tiny_clip(images))
    cut = patches(16)
    for image, k, found in zip(images, labels.tolist(), maps):
        scores = lime.Lime(20).scores(tiny_clip, image, cut, "grey", k)
        expected = np.kron(scores.reshape(3, 3), np.ones((2, 2))).clip(0)
        assert np.abs(found.numpy() - expected / (expected.max() + 1e-8)).max() < 1e-5


def test_more_samples_than_memory_allows_are_refused(monkeypatch):
    monkeypatch.setattr(lime, "_free_memory", lambda: 1e6)
    with pytest.raises(InputError, match=r"give fewer with --lime.samples"):
        lime.Lime(10_000).design(196, 0)
    with pytest.raises(InputError, match="at least 2 samples"):
        lime.Lime(1)
    for wrong in ({"width": 0.0}, {"keep": 1.0}, {"ridge": -1.0}):
        with pytest.raises(InputError, match="kernel width above 0, a keep probability"):
            lime.Lime(**wrong)


@torch.no_grad()
def test_linearity_and_shape_bias_equal_slow_versions(tiny_clip, examples):
    tiny_clip.eval()
    images = torch.stack([example.image for example in examples]) / 255
    found = Linearity(tiny_clip, ("grey",), (16,))(examples, 0)["16/grey"]
    for k, image in enumerate(images):
        parts = []
        for r in range(0, 48, 16):
            for c in range(0, 48, 16):
                made = torch.tensor(GREY).view(3, 1, 1).expand(3, 48, 48).clone()
                made[:, r : r + 16, c : c + 16] = image[:, r : r + 16, c : c + 16]
                parts.append(tiny_clip.features(made[None])[0].double().numpy())
        whole, total = tiny_clip.features(image[None])[0].double().numpy(), np.sum(parts, 0)
        size = np.linalg.norm(whole)
        expected = [
            np.linalg.norm(total - whole) / size,
            total @ whole / size / np.linalg.norm(total),
            np.mean([np.linalg.norm(part) for part in parts]),
            size,
            size / 9,
        ]
        assert found[k].tolist() == pytest.approx(expected, rel=1e-4)
    (row,) = linearity({"16/grey": found.numpy()}, 200)
    value, low, high = row["cosine"]
    assert value == pytest.approx(found[:, 1].mean().item())
    assert found[:, 1].min() <= low < value < high <= 1

    answers = ShapeBias(tiny_clip, ("black",))(examples, 0)
    for k, example in enumerate(examples):
        gone = np.roll(np.roll(example.object().numpy(), 24, 0), 24, 1)
        made = np.where(gone, 0, images[k].numpy())
        assert answers["rolled/black"][k] == tiny_clip(torch.tensor(made)[None]).argmax()
    arrays = {
        "labels": np.array([0, 0, 1, 1]), "clean": np.array([0, 0, 1, 0]),
        "object/x": np.array([0, 2, 2, 1]), "rolled/x": np.array([0, 0, 3, 1]),
    }  # fmt: skip
    (row,) = shape_bias(arrays, 10, ["a", "b"])
    assert (row["object hidden"][0], row["as much elsewhere"][0]) == (1 / 3, 2 / 3)
    value, low, high = row["ratio"]
    assert value == pytest.approx(0.5) and 0 <= low <= value <= high <= 1
    assert shape_bias({**arrays, "clean": arrays["labels"] + 1}, 10, ["a", "b"]) == []


@torch.no_grad()
def test_concordance_equals_a_slow_version(tiny_clip, examples):
    tiny_clip.eval()
    found = Concordance(tiny_clip, ("black",), 4)(examples, 0)
    images = torch.stack([example.image for example in examples]) / 255
    cosines = {}
    for pixels in (224, 64):
        side = round(48 * pixels / 224)
        shown = torch.zeros_like(images)
        small = torch.nn.functional.interpolate(
            images, (side, side), mode="bilinear", antialias=True
        )
        shown[:, :, :side, :side] = small
        f = tiny_clip.features(shown).double().numpy()
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        cosines[pixels] = np.array([f[k] @ f[k - 1] for k in range(4)])
    expected = np.abs(cosines[64] - cosines[224])
    assert found["size/64/black"].numpy() == pytest.approx(expected, abs=1e-6)
    # Two squares of one size: the cosine of their masks is the share that they have in common.
    still, right = (windows(images[:1], 36, np.array([move]), np.zeros(1)) for move in (0, 25))
    assert still.sum() == right.sum() == 16 * 16
    share = (16 - round(25 * 48 / 224)) / 16
    assert (still & right).sum() / still.sum() == pytest.approx(share)
    for name, values in found.items():
        assert values.shape == (4,) and (values <= 1 + 1e-9).all(), name
    sizes, moved = concordance({name: value.numpy() for name, value in found.items()}, 200)
    value, low, high = sizes[2]["change"]
    assert value == pytest.approx(expected.mean())
    assert expected.min() <= low < value < high <= expected.max()
    assert len(moved) == 15 and all(0 < row["cosine of masks"] < 1 for row in moved)
    with pytest.raises(InputError, match="at least 2 images"):
        Concordance(tiny_clip, ("black",), 4)(examples[:1], 0)


def test_the_command_explains_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, image in enumerate(digits.digit_set("id", 2, 0).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((90, 70)).save(f"{k} of two.png")
    files = ["0 of two.png", "1 of two.png"]
    model = ["--model=open_clip:tiny-clip", "--class_names=one,two,three"]
    main(["explain", *files, *model, "--lime.samples=20", "--hidings=grey,removed", "--side=16"])
    assert "explained.png" in capsys.readouterr().out
    with Image.open("explained.png") as lime_picture:
        wide = lime_picture.width
    main(["explain", *files, *model, "--by=relevance", "--label", "one", "--out=map.png"])
    with Image.open("map.png") as picture:
        assert 100 < picture.width < wide
    for words, said in (
        (["--model=open_clip:tiny-clip"], "give --label or --class_names"),
        ([*model, "--label", "four"], "Unknown class 'four'"),
        ([*model, "--lime.samples=1"], "at least 2 samples"),
        ([*model, "--hidings=refill"], "need no other image"),
        ([*model, "--hidings=gray"], "Unknown way of hiding"),
        ([*model, "--side=7"], "patch side that divides"),
        ([*model, "--seed=-1"], "seed from 0"),
        ([*model, "--top=-1"], "at least 0 segments"),
        ([*model, f"--out={files[1]}"], "none of the pictures"),
    ):
        with pytest.raises(SystemExit):
            main(["explain", *files, *words])
        assert said in capsys.readouterr().err


def test_wordnet_similarity_equals_nltks():
    wordnet = pytest.importorskip("nltk.corpus").wordnet
    from cfmask.missingness.class_similarity import wu_palmer

    ids = ["n02123045", "n02123159", "n02085620", "n01440764", "n03445777", "n04019541"]
    try:
        nouns = [wordnet.synset_from_pos_and_offset("n", int(one[1:])) for one in ids]
    except LookupError:
        pytest.skip("WordNet is not there")
    expected = [[a.wup_similarity(b) for b in nouns] for a in nouns]
    assert np.abs(wu_palmer(ids) - expected).max() < 1e-12


def test_similarity_of_classes_is_kept_or_left_out(tmp_path, monkeypatch):
    from cfmask.missingness import class_similarity as similar
    from cfmask.wordnet import class_names

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    assert similar.class_similarity(class_names(), None) is None
    with pytest.raises(InputError, match="pip install"):
        similar.class_similarity(class_names(), True)
    made = []
    monkeypatch.setattr(similar, "wu_palmer", lambda ids: made.append(ids) or np.eye(len(ids)))
    for _ in range(2):
        assert (similar.class_similarity(class_names(), None) == np.eye(1000)).all()
    assert len(made) == 1
    (kept,) = (tmp_path / "cfmask").iterdir()
    # NLTK finds some classes less than fully like themselves: a right answer is.
    monkeypatch.setattr(similar, "wu_palmer", lambda ids: made.append(ids) or np.eye(len(ids)) / 2)
    kept.write_bytes(b"damaged")
    assert (similar.class_similarity(class_names(), True) == np.eye(1000)).all()
    assert len(made) == 2
    assert similar.class_similarity(class_names(), False) is None
    assert similar.class_similarity(("a", "b"), None) is None
    with pytest.raises(InputError, match="WordNet ids"):
        similar.class_similarity(("a", "b"), True)
