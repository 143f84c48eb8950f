"""Images with masks: beside images, as in Pixel and Salient ImageNet, of the digits world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.removal import TINY, fails

from cfmask import InputError, Preprocess, digits
from cfmask.missingness.object_masks import MaskedDigits, find_images
from cfmask.wordnet import synsets

LOOK = Preprocess((8, 8), interpolation="bilinear")


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **({"quality": 100} if path.suffix != ".png" else {}))


def mask(path: Path, box: tuple[int, int, int, int], size=(8, 8), value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, 0)
    image.paste(value, box)
    image.save(path, **({"quality": 100} if path.suffix != ".png" else {}))


def test_a_png_beside_an_image_is_its_mask(tmp_path):
    paint(tmp_path / "one" / "a.jpg", (9, 9, 9), (32, 16))
    mask(tmp_path / "one" / "a.png", (8, 0, 16, 8), (32, 16))
    paint(tmp_path / "two words" / "b.png", (5, 5, 5))
    data = find_images(tmp_path, None, ["one", "two words"], LOOK, 0)
    assert [Path(s.path).name for s in data.samples] == ["a.jpg", "b.png"]
    assert not data.masked and data.labelled
    first = data[0]
    # The short side becomes 8 and the middle is kept: columns 8 to 24 of 32.
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    assert (first.saliency == expected).all()
    assert (first.label, data[1].label, data[1].saliency) == (0, 1, None)
    assert len(find_images(tmp_path, None, ["one", "two words"], LOOK, 1)) == 1


def test_pictures_without_classes_have_no_labels(tmp_path):
    for k in range(2):
        paint(tmp_path / f"{k}.jpg", (k, k, k))
    data = find_images(tmp_path, None, ["one"], LOOK, 0)
    assert (len(data), data.labelled, data[0].label) == (2, False, -1)


@pytest.fixture
def salient(tmp_path) -> tuple[Path, Path]:
    """Two classes with core and spurious features, and a third image without a core feature."""
    masks, rows = tmp_path / "masks", ["WorkerId,Input.wordnet_id,Input.feature_index,Answer.main"]
    for wnid, feature, against in ((0, 5, 2), (0, 6, 3), (7, 5, 4), (7, 8, 0)):
        answers = ["background", "separate_object"] * 3
        answers = answers[:against] + ["main_object"] * (5 - against)
        rows += [f"1,{synsets()[wnid]},{feature},{answer}" for answer in answers]
    masks.mkdir()
    (masks / "discover_spurious_features.csv").write_text("\n".join(rows))
    for k in (0, 7):
        for image in ("x", "y"):
            paint(tmp_path / "train" / synsets()[k] / f"{image}.JPEG", (0, k * 20, 7), (256, 256))
    for wnid, feature, box in ((0, 5, (0, 0, 112, 112)), (0, 6, (112, 112, 224, 224)),
                               (7, 8, (112, 0, 224, 112)), (7, 5, (0, 0, 224, 224))):  # fmt: skip
        place = masks / synsets()[wnid] / f"feature_{feature}"
        mask(place / "x.JPEG", box, (224, 224), 255)
        if wnid == 7 and feature == 5:
            mask(place / "y.JPEG", box, (224, 224), 255)
    return tmp_path / "train", masks


def test_salient_imagenet_has_the_core_features_of_the_centre(salient):
    names = [f"class {k}" for k in range(1000)]
    look = Preprocess((224, 224), crop_pct=0.875, interpolation="bilinear")
    data = find_images(*salient, names, look, 0)
    assert [(Path(s.path).name, s.label) for s in data.samples] == [("x.JPEG", 0), ("x.JPEG", 7)]
    for k, (rows, columns) in enumerate(((slice(112), slice(112)), (slice(112), slice(112, None)))):
        expected = torch.zeros(224, 224, dtype=torch.bool)
        expected[rows, columns] = True
        # JPEG is soft at the edge.
        assert (data[k].object() != expected).float().mean() < 0.001
    with pytest.raises(InputError, match=r"discover_spurious_features.csv"):
        (salient[1] / "discover_spurious_features.csv").unlink()
        find_images(*salient, names, look, 0)


def test_digits_are_the_objects_of_their_world():
    data, drawn = MaskedDigits(count=3, seed=5), digits.digit_set("id", 3, 5)
    for k in range(3):
        assert (data[k].image == drawn.images[k]).all()
        assert (data[k].object() == drawn.digit[k]).all()


def test_what_is_wrong_with_masks_is_one_line(tmp_path, capsys):
    data = tmp_path / "data"
    paint(data / "three" / "a.jpg", (9, 9, 9), (48, 48))
    run = [TINY, f"--data={data}", "--orders=random", f"--out={tmp_path / 'out'}"]
    mask(data / "three" / "a.png", (0, 0, 4, 4), (48, 40))
    assert "48 x 48 pixels as its image, but got 48 x 40" in fails(capsys, *run)
    mask(data / "three" / "a.png", (0, 0, 0, 0), (48, 48))
    assert "all of it is black" in fails(capsys, *run)
    mask(data / "three" / "a.png", (0, 0, 4, 4), (48, 48))
    assert "WordNet" in fails(capsys, *run, "--wordnet=true")
    assert "folder of images or masks" in fails(capsys, *run, f"--masks={tmp_path / 'no'}")
    assert np.asarray(Image.open(data / "three" / "a.png")).max() == 1
