"""Segments of one's own: label maps in a folder, and functions by their import path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.removal import TINY, fails

from cfmask import InputError, Preprocess
from cfmask.commands.main import main
from cfmask.missingness.lab import missingness
from cfmask.missingness.object_masks import Example, find_images
from cfmask.missingness.segments import cutters
from cfmask.reporting import panels

FUNCTION = """
import numpy as np

def thirds(image):
    return np.arange(image.shape[1]) // 16 * 7 + np.zeros(image.shape[:2], int)

def floats(image):
    return image[..., 0]
"""


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """Two pictures of noise, twice as wide as high, with label maps of three and of five bands."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, step in (("a", 32), ("b b", 20)):
        path = Path("photos", "one") / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 96, 3), dtype=np.uint8)).save(path)
        bands(name, step)
    Path("own_cuts.py").write_text(FUNCTION)
    return tmp_path


def bands(name: str, step: int, wide: int = 96) -> None:
    """A label map whose segments are upright bands, each of a colour of its own."""
    columns = np.arange(wide) // step
    colours = np.stack([columns * 90 % 256, columns * 50 + 3, 255 - columns], 1).astype(np.uint8)
    path = Path("the bands", "one") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(colours, (48, wide, 3)).copy()).save(path)


def test_label_maps_are_cropped_as_their_images(pictures):
    image = torch.zeros(3, 48, 48, dtype=torch.uint8)
    (cut,) = cutters(["the bands"], 16, 9, Preprocess((48, 48))).values()
    for name, step in (("a", 32), ("b b", 20)):
        found = cut(Example(f"photos/one/{name}.jpg", image, 0, None))
        # The middle half of 96 columns is kept; what is cut off is no segment any more.
        columns = np.arange(24, 72) // step
        pairs = set(zip(found.ravel().tolist(), np.tile(columns, 48).tolist()))
        assert len(pairs) == len(set(columns)) == found.max() + 1
    assert cut.name == "the bands"


def test_both_commands_take_maps_and_functions(pictures, monkeypatch):
    monkeypatch.setattr(panels, "save", lambda *_: None)
    monkeypatch.setattr(panels, "svg", repr)
    main(["missingness", TINY, "--data=photos", "--hidings=grey", "--orders=random", "--images=1",
          "--samples=5", "--segments=the bands,own_cuts.thirds", "--out=out"])  # fmt: skip
    found = json.loads(Path("out", "missingness.json").read_text())["removal"]
    assert [row["segments"] for row in found] == ["the bands", "own_cuts.thirds"]
    main(["explain", "photos/one/b b.jpg", f"--model={TINY}", "--label", "one", "--hidings=grey",
          "--lime.samples=5", "--segments=the bands"])  # fmt: skip
    assert Path("explained.png").is_file()


def test_kept_answers_are_not_those_of_other_segments(pictures, tiny_clip):
    data = find_images(Path("photos/one"), None, ["one"], tiny_clip.preprocess, 1)

    def kept() -> int:
        missingness({"m": tiny_clip}, {"m": data}, ("grey",), ["the bands"], ("random",),
                    samples=1, measures=(), store="kept")  # fmt: skip
        return len(list(Path("kept").iterdir()))

    assert [kept(), kept()] == [1, 1]
    bands("a", 8)
    assert kept() == 2


def test_what_is_wrong_with_segments_is_one_line(pictures, capsys):
    run = [TINY, "--data=photos", "--orders=random", "--hidings=grey", "--out=out"]
    for segments, said in (
        ("slick", "Unknown segmentation 'slick'. Nearest: slic"),
        ("own_cuts.floats", "Expected whole numbers (48, 48) as the segments of"),
        ("own_cuts.absent", "to be the import path of a class or function"),
        ("patches,patches", "Expected segments of different names"),
        ("out of sight", "Unknown segmentation"),
        (str(pictures), "Expected a label map a.png"),
    ):
        assert said in fails(capsys, *run, f"--segments={segments}")
    bands("a", 32, wide=90)
    said = fails(capsys, *run, "--segments=the bands")
    assert "to be 96 x 48 pixels as its image, but got 90 x 48" in said
    with pytest.raises(InputError, match="at least 1 pixels"):
        cutters(["patches"], 0, 9, Preprocess((48, 48)))
