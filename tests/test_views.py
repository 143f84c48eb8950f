"""Views against numpy loops that read the pictures themselves with Pillow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from support.evaluation import Sees, in_processes, painted, without_run
from torch import nn

import cfmask
from cfmask import InputError, Preprocess
from cfmask.comparison.evaluate import evaluate
from cfmask.frame import Frame, plain, room
from cfmask.shifts.own_sets import dataset_shift
from cfmask.views.known_views import views_of
from cfmask.views.structure import GRIDS, mirrored_crop, shuffled

SIDE = 16
NAMES = [str(k) for k in range(5)]


def pictures(count: int = 7) -> list[tuple[Image.Image, int]]:
    """Smooth random pictures of odd and even sizes."""
    rng = np.random.default_rng(3)
    made = []
    for k in range(count):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        size = (40 + 3 * k, 37 + k)
        made.append((Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), k % 5))
    return made


def classifier(crop_pct: float = 0.8) -> Sees:
    """Features and logits are a random linear map of the pixels."""
    torch.manual_seed(0)
    model = Sees(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 5)), SIDE)
    model.preprocess = Preprocess((SIDE, SIDE), crop_pct)
    return model


def linear(model: Sees, pixels: np.ndarray) -> np.ndarray:
    """What the classifier says to uint8 (H, W, 3), in float64."""
    layer = model.encoder[1]
    flat = torch.tensor(pixels.copy()).permute(2, 0, 1).flatten().double() / 255
    return (layer.weight.double() @ flat + layer.bias.double()).detach().numpy()


def crop_by_pillow(picture: Image.Image, share: float, dx: int = 0, dy: int = 0) -> np.ndarray:
    short = int(SIDE / share)
    least = min(picture.size)
    wide, high = (int(short * side / least) for side in picture.size)
    resized = np.array(picture.resize((wide, high), Image.Resampling.BICUBIC))
    top, left = round((high - SIDE) / 2) + dy, round((wide - SIDE) / 2) + dx
    assert top >= 0 and left >= 0, "pixels of the picture"
    return resized[top : top + SIDE, left : left + SIDE]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def moves(pixels: int) -> Iterator[tuple[int, int]]:
    steps = (-pixels, 0, pixels)
    return ((dx, dy) for dy in steps for dx in steps if (dx, dy) != (0, 0))


@pytest.mark.parametrize("decoder", ["pil", "fast"])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_the_ordinary_image_is_in_the_frame_pixel_for_pixel(decoder, crop_pct):
    for side in (SIDE, SIDE + 1):
        look = Preprocess((side, side), crop_pct, decoder=decoder)
        frame = Frame.around(look, 1, beside=True)
        for picture, _ in pictures():
            whole = frame(picture)
            assert whole.shape == (3, *frame.size)
            assert torch.equal(plain(whole[None], frame, look)[0], look(picture))


@pytest.mark.parametrize(("crop_pct", "share"), [(0.8, 0.8), (1.0, 224 / 256)])
def test_translation_is_what_a_loop_over_pictures_finds(crop_pct, share):
    model, data = classifier(crop_pct), pictures()
    views = views_of(["translation"])
    shifts = [dataset_shift("mine", data, NAMES)]
    report = evaluate({"m": model}, shifts, views=views, decoder="pil")
    same, right, changes, ordinary = [], [], [], []
    for picture, label in data:
        middle = linear(model, crop_by_pillow(picture, share))
        others = [linear(model, crop_by_pillow(picture, share, *move)) for move in moves(1)]
        same.append([other.argmax() == middle.argmax() for other in others])
        right.append(all(other.argmax() == label for other in others))
        changes.append(np.mean([1 - cosine(middle, other) for other in others]))
        usual = crop_by_pillow(picture, crop_pct)
        ordinary.append(linear(model, usual).argmax() == label)
    assert 0 < np.mean(same) < 1, "a set that tells"
    found = {name: report.value("m", "mine", f"translation/{name}") for name in views_columns()}
    assert found["agreement"] == pytest.approx(np.mean(same))
    assert found["all_agree"] == pytest.approx(np.mean(np.all(same, 1)))
    assert found["worst_accuracy"] == pytest.approx(np.mean(right))
    assert found["feature_change"] == pytest.approx(np.mean(changes), rel=1e-4)
    assert report.value("m", "mine") == pytest.approx(np.mean(ordinary))
    row = report.row("m", "mine", "translation/all_agree")
    exact = binomtest(int(np.all(same, 1).sum()), len(data)).proportion_ci(method="exact")
    assert (row.low, row.high) == pytest.approx((exact.low, exact.high))
    read = report.protocol["views"]["translation"]["read"]
    assert [sets for words, sets in read.items() if "256/224" in words] == [["mine"]] * (
        crop_pct == 1
    )


def views_columns() -> list[str]:
    return list(views_of(["translation"])["translation"].columns)


def test_agreement_has_the_interval_of_a_share_of_images():
    model, shifts = classifier(), [dataset_shift("mine", pictures(), NAMES)]
    model.encoder[1].weight.data.zero_()
    report = evaluate({"m": model}, shifts, views=views_of(["translation"]))
    row = report.row("m", "mine", "translation/agreement")
    exact = binomtest(7, 7).proportion_ci(method="exact")
    assert (row.value, row.low, row.high) == pytest.approx((1, exact.low, 1))


def test_structure_is_what_a_loop_over_pictures_finds():
    model, data = classifier(), pictures()
    report = evaluate(
        {"m": model}, [dataset_shift("mine", data, NAMES)], views=views_of(["structure"])
    )
    looks = [model.preprocess(picture) for picture, _ in data]
    for g in GRIDS:
        right = []
        for k, pixels in enumerate(looks):
            image = pixels[None].float() / 255
            features = [
                model.encoder(shown)[0].detach().double().numpy()
                for shown in (image, mirrored_crop(image), shuffled(image, g, [k]))
            ]
            right.append(cosine(features[0], features[1]) > cosine(features[0], features[2]))
        assert report.value("m", "mine", f"structure/{g}x{g}") == pytest.approx(np.mean(right))


class Mean(nn.Module):
    """Features are the mean colour, which no order of patches changes, or a position's too."""

    def __init__(self, layout: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.layout = layout

    def forward(self, images):
        rows = images.mean((1, 3)) if self.layout else images.mean((1, 2, 3))[:, None]
        return nn.functional.pad(rows, (0, max(0, 5 - rows.shape[1])), value=0.1) * self.scale


@pytest.mark.parametrize("layout", [True, False])
def test_who_sees_the_layout_is_right_and_who_sees_colours_alone_is_not(layout):
    head = nn.Linear(SIDE if layout else 5, 5)
    grey = np.tile(np.linspace(0, 255, 48).astype(np.uint8)[:, None, None], (1, 48, 3))
    data, model = [(Image.fromarray(grey), 0)] * 4, Sees(Mean(layout), SIDE, head)
    report = evaluate(
        {"m": model}, [dataset_shift("mine", data, NAMES)], views=views_of(["structure/4"])
    )
    shares = [report.value("m", "mine", f"structure/4/{g}x{g}") for g in (2, 4)]
    assert shares[1] == (1 if layout else 0)


def test_shuffling_moves_whole_patches_and_never_none():
    images = torch.rand(30, 3, 17, 23)
    for g in GRIDS:
        moved = shuffled(images, g, range(30))
        high, wide = 17 // g, 23 // g
        assert torch.equal(moved[..., g * high :, :], images[..., g * high :, :]), "the rim"
        assert torch.equal(moved[..., g * wide :], images[..., g * wide :])
        for before, after in zip(images.numpy(), moved.numpy()):
            cells = [
                sorted(
                    one[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide].tobytes()
                    for y in range(g)
                    for x in range(g)
                )
                for one in (before, after)
            ]
            assert cells[0] == cells[1]
            assert not np.array_equal(before, after)
        again = shuffled(images[5:9], g, range(5, 9))
        assert torch.equal(again, moved[5:9]), "by the image's number alone"


SHOWN = ["translation", "structure/3"]


def save_report(path: Path) -> None:
    shifts = [dataset_shift(name, pictures(n), NAMES) for name, n in (("mine", 7), ("few", 1))]
    # One by one: sums of floats depend on how many images a batch has.
    evaluate({"m": classifier()}, shifts, views=views_of(SHOWN), batch_size=1).save(path)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_finds_the_same(tmp_path, count):
    save_report(tmp_path / "alone.json")
    alone = without_run(cfmask.ShiftReport.load(tmp_path / "alone.json"))
    columns = {f"{name}/{one}" for name, view in views_of(SHOWN).items() for one in view.columns}
    assert columns <= {row.metric for row in alone.rows}
    in_processes(count, tmp_path / "out", save_report)
    for rank in range(count):
        assert without_run(cfmask.ShiftReport.load(tmp_path / "out" / f"{rank}.json")) == alone


def test_kept_answers_hold_the_views_and_are_those_of_the_same_views_only(tmp_path):
    model, shifts = classifier(), [dataset_shift("mine", pictures(), NAMES)]

    def made(names):
        return evaluate({"m": model}, shifts, store=tmp_path, views=views_of(names))

    first, again = made(SHOWN), made(SHOWN)
    assert again.run["reused"] == ["mine"] and first.run["reused"] == []
    assert again.rows == first.rows
    assert made(["structure/3"]).run["reused"] == []
    assert made([]).run["reused"] == []


def test_images_that_end_at_the_crop_are_left_out_of_what_moves_the_crop():
    model = Sees(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 4)
    model.preprocess = Preprocess((4, 4), 0.5)
    report = evaluate({"m": model}, [painted("stored", 6)], views=views_of(SHOWN))
    assert not report.of("translation/agreement")
    assert report.of("structure/3/2x2")
    assert [*report.protocol["views"]["translation"]["read"].values()] == [["stored"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("translation/3", "at most 2 pixels"),
        ("translation/0", "at least 1"),
        ("translation/x", "a whole number"),
        ("structure/9", "from 2 to 7"),
        ("translaton", "translation"),
        ("json.dumps", "to be a View"),
    ],
)
def test_what_cannot_be_shown_is_one_line(name, words):
    with pytest.raises(InputError, match=words) as error:
        shifts = [dataset_shift("mine", pictures(), NAMES)]
        evaluate({"m": classifier()}, shifts, views=views_of([name]))
    assert "\n" not in str(error.value)


def test_frames_of_frames_come_from_the_same_resized_picture():
    look = Preprocess((SIDE, SIDE), 0.6)
    inner = Frame.around(look, 2)
    outer = Frame.around(inner, 3, beside=True)
    assert (room(look), room(inner)) == (5, 3)
    for picture, _ in pictures(3):
        assert torch.equal(plain(outer(picture)[None], outer, inner)[0], inner(picture))


def test_the_command_shows_the_views_of_digits(tmp_path, capsys, monkeypatch):
    from cfmask.commands.eval_models import evaluate_run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_views.py").write_text(
        "import torch\n"
        "from cfmask.evaluation.metrics import Metric\n"
        "from cfmask.views.view import View\n"
        "class Dark(View):\n"
        "    columns = {'same': Metric('Same answer in the dark')}\n"
        "    def versions(self, images, numbers):\n"
        "        yield images / 2\n"
        "    def measure(self, plain, versions):\n"
        "        return {'same': versions[0].predicted == plain.predicted}\n"
    )
    torch.manual_seed(0)
    made = cfmask.TimmClassifier("test_resnet", False, cfmask.digits.CLASS_NAMES, image_size=48)
    cfmask.save_classifier(made, tmp_path / "model.safetensors")
    words = ["--views", "translation,structure/2,my_views.Dark", "--shifts", "digits/id"]
    evaluate_run(["model.safetensors", *words, "--images=12", "--out=out"])
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "Same answer in the dark" in shown and "moved by 1 px" in shown
    found = {row["metric"] for row in report["rows"]}
    assert {"translation/agreement", "structure/2/2x2", "my_views.Dark/same"} <= found
    assert "translation/agreement" in (tmp_path / "out" / "report.csv").read_text()


def test_predictions_have_the_columns_of_views_empty_without_features(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    model, name = classifier(), "structure/4/4x4"

    def bare(images):
        return images.mean((2, 3)) @ torch.ones(3, 5)

    evaluate(
        {"seen": model, "bare": (bare, lambda p: model.preprocess(p) / 255)},
        [dataset_shift("scenes", pictures(), NAMES)],
        3,
        class_names=NAMES,
        views=views_of(["structure/4"]),
        predictions=tmp_path,
    )
    expected = []
    for k, (picture, _) in enumerate(pictures()):
        image = model.preprocess(picture)[None].float() / 255
        first, crop, other = (
            model.encoder(shown)[0].detach().double().numpy()
            for shown in (image, mirrored_crop(image), shuffled(image, 4, [k]))
        )
        expected.append(float(cosine(first, crop) > cosine(first, other)))
    columns = {p.name[8:12]: pq.read_table(p)[name].to_pylist() for p in tmp_path.iterdir()}
    assert columns == {"seen": expected, "bare": [None] * 7}
    assert len(set(expected)) == 2, "the order of the images shows"
