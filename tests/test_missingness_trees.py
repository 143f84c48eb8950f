"""Made-up trees of Pixel and Salient ImageNet through the command, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.evaluation import in_processes
from support.imagenet_trees import Sees, paint
from support.removal import fails

from cfmask.commands import measure_missingness
from cfmask.commands.main import main
from cfmask.missingness import per_image
from cfmask.missingness.findings import AREAS, SHAPE
from cfmask.reporting import panels
from cfmask.wordnet import synsets

Box = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A model that reads the class from the first pixel, two images a stretch, charts as text."""
    monkeypatch.setattr(measure_missingness, "one_classifier", lambda *_: Sees())
    monkeypatch.setattr(per_image, "STRETCH", 2)
    monkeypatch.setattr(panels, "save", lambda *_: None)
    monkeypatch.setattr(panels, "svg", repr)


def mask(path: Path, box: Box, size: int, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), 0)
    image.paste((255, 0, 0), box)
    image.save(path, format=kind)


def name_of(k: int, number: int) -> str:
    return f"{synsets()[k]}_{number}"


def pixel(root: Path) -> None:
    """Pictures of two classes; the object of the first is in the corner that tells the class."""
    for k, box in ((3, (0, 0, 6, 6)), (7, (6, 0, 12, 6))):
        for number in (10, 203, 31):
            name = name_of(k, number)
            paint(root / "train" / synsets()[k] / f"{name}.JPEG", k)
            if number != 31:
                # Red on black, as its files are.
                mask(root / "masks" / synsets()[k] / f"{name}.png", box, 12, "PNG")


def salient(root: Path) -> None:
    """The same as soft masks of the centre, with a feature beside it that workers find spurious."""
    rows = ["WorkerId,Input.wordnet_id,Input.feature_index,Answer.main"]
    corners = {3: (0, 0, 112, 112), 7: (112, 0, 224, 112)}
    for k, box in corners.items():
        for feature, against in ((40 + k, 2), (500, 3)):
            said = ["separate_object", "background", "background"][:against]
            said += ["main_object"] * (5 - against)
            rows += [f"{w},{synsets()[k]},{feature},{one}" for w, one in enumerate(said)]
        for number in (10, 203, 31):
            name = name_of(k, number)
            paint(root / "train" / synsets()[k] / f"{name}.JPEG", k, (256, 256))
            place = root / "masks" / synsets()[k]
            # The last has a spurious feature alone.
            if number != 31:
                mask(place / f"feature_{40 + k}" / f"{name}.JPEG", box, 224, "JPEG")
            mask(place / "feature_500" / f"{name}.JPEG", (0, 0, 224, 224), 224, "JPEG")
    answers = root / "mturk_results" / "discover_spurious_features.csv"
    answers.parent.mkdir()
    answers.write_text("\n".join(rows))


@pytest.mark.parametrize("plant", [pixel, salient])
def test_a_tree_scores_as_designed_on_one_and_two_processes(plant, tmp_path, monkeypatch):
    plant(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(path: Path) -> None:
        # The first process alone writes.
        out = path.parent / "found"
        main(["missingness", "timm:made-up", "--data=train", "--masks=masks", f"--out={out}",
              "--hidings=black,red", "--orders=most,least", "--side=4", "--samples=9"])  # fmt: skip

    (tmp_path / "one").mkdir()
    run(tmp_path / "one" / "0")
    in_processes(2, tmp_path / "two", run)
    for name in ("missingness.json", "missingness.html"):
        one, two = (tmp_path / n / "found" / name for n in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    kept = [len(list((tmp_path / n / "found" / "answers").iterdir())) for n in ("one", "two")]
    assert kept == [4, 4]
    check(json.loads(one.with_name("missingness.json").read_text()))


def check(found: dict[str, Any]) -> None:
    """Scores by hand: black and red are the colours of no class here."""
    assert found["protocol"]["models"]["timm:made-up"]["images"] == 4
    for row in found["tables"][SHAPE]:
        # Without its object the first class cannot be told, the second can; moved, both can.
        assert row["object hidden"][0] == 0.5
        assert row["as much elsewhere"] == [1, 1, 1]
        assert row["images"] == 4
    assert len(found["removal"]) == 4 and AREAS not in found["tables"]
    for row in found["removal"]:
        # Of four patches the first tells the class. It goes first or last where it is the object,
        # else after the object or before it.
        place = {"most": (1, 2), "least": (4, 1)}[row["order"]]
        gone = [k * 4 // 10 for k in range(11)]
        right = [sum(g < p for p in place) / 2 for g in gone]
        assert row["curves"]["accuracy"]["values"] == right
        assert row["curves"]["kept"]["values"] == right


def test_a_model_without_a_rule_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    pixel(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = fails(capsys, "timm:made-up", "--data=train", "--masks=masks", "--hidings=removed",
                 "--orders=random", "--side=4")  # fmt: skip
    assert "Layer masking cannot go through the operation" in said and "use a fill" in said
    assert "ReadsTheColour" in said
