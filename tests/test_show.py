from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cfmask import GradCAM, ObjectMask, OpenClipClassifier, digits, save_classifier
from cfmask.commands.show_images import show, show_images
from cfmask.runs.run_folder import CONFIG

TINY = ["--checkpoint", "open_clip:tiny-clip"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Three digits as files of another size than the model takes; the last one is white."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{name}.png") for name in ("one", "three", "white")]
    images = digits.digit_set("id", 3, seed=0).images
    images[2] = 255
    for path, image in zip(paths, images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((90, 70)).save(path)
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What `show` reads of a run folder: config and weights."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())
    config["data"]["init_args"]["train_images"] = 20
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    classifier = OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    save_classifier(classifier, folder / "weights.safetensors")
    return folder


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        show_images(list(args))
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_zero_shot_classifier_is_made_from_the_labels(pictures, tmp_path, capsys):
    out = tmp_path / "all.png"
    labels = ["--label", "one", "three", "white wall"]
    show_images([*pictures, *TINY, *labels, "--out", str(out)])
    assert capsys.readouterr().out == f"Drawn in {out}\n"
    with Image.open(out) as image:
        assert min(image.size) > 300


def test_mask_fill_and_relevance_are_chosen_by_class(pictures, tmp_path):
    drawings = []
    parts = ["--mask=RandomMask", "--fill=ConstantFill"]
    options = [
        ["--mask.probability=0"],
        ["--mask.probability=0.999", "--fill.colour=black"],
        ["--mask.probability=0", "--relevance=GradCAM"],
    ]
    for k, chosen in enumerate(options):
        out = tmp_path / f"{k}.png"
        show_images([pictures[2], *TINY, "--label", "one", "--out", str(out), *parts, *chosen])
        drawings.append(np.asarray(Image.open(out).convert("RGB")).astype(int))
    none, everything, other = drawings
    width = none.shape[1]
    changed = (none != everything).any((0, 2)).nonzero()[0]
    assert changed.min() > 0.5 * width
    # The middle of the last picture is the fill's colour now; it was white.
    middle = none.shape[0] // 2, int(0.9 * width)
    assert none[middle].min() == 255 and everything[middle].max() == 0
    maps = (none != other).any((0, 2)).nonzero()[0]
    assert maps.max() < 0.56 * width


def test_a_run_brings_its_relevance_and_donors(run, pictures, tmp_path):
    out = show([pictures[2]], ["one"], str(run), out=str(tmp_path / "a.png"))
    again = show([pictures[2]], ["one"], str(run), out=str(tmp_path / "b.png"))
    masked = show(
        [pictures[2]], ["one"], str(run), mask=ObjectMask(0.0), out=str(tmp_path / "c.png")
    )
    assert out.read_bytes() == again.read_bytes() != masked.read_bytes()
    # Patches of training images have come into a white picture.
    last = np.asarray(Image.open(masked).convert("RGB"))[:, -100:-60]
    assert (last.max(-1) < 250).any()


def test_any_classifier_can_be_given(pictures, tmp_path, small_cnn):
    out = show(
        pictures, ["b"], classifier=small_cnn, relevance=GradCAM(), out=str(tmp_path / "x.png")
    )
    assert out.is_file()
    assert not any(module.training for module in small_cnn.modules())


def test_chance_is_that_of_the_seed(pictures, tmp_path):
    options = [*TINY, "--label", "one", "--mask=RandomMask"]
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        out = str(tmp_path / f"{name}.png")
        show_images([*pictures, *options, f"--seed={seed}", "--out", out])
    first, second, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == second != other


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--label", "on", "--class_names", "one", "two"], ["class 'on'", "one"]),
        (["--label", "one"], ["second picture", "--fill ConstantFill"]),
        (["--label", "one", "two"], ["one label for all", "but got 2"]),
        (["--label", "one", "--mask=ObjectMsk"], ["ObjectMsk", "Nearest: ObjectMask"]),
        (["--label", "one", "--out", "nowhere/x.png"], [".png", "nowhere"]),
        (["--label", "one", "--seed", "-1"], ["seed from 0", "-1"]),
        (["--label", " "], ["names of classes", "an empty one", "--label"]),
        ([], ["label"]),
    ],
)
def test_what_cannot_be_drawn_is_one_line(args, words, pictures, capsys):
    more = [pictures[1]] if "--out" in args else []
    line = fails(capsys, pictures[0], *more, *TINY, *args)
    assert all(word in line for word in words), line


def test_no_picture_is_drawn_over(pictures, capsys, monkeypatch):
    before = Path(pictures[0]).read_bytes()
    monkeypatch.chdir(Path(pictures[0]).parent)
    line = fails(capsys, *pictures, *TINY, "--label", "one", "--out", "./one.png")
    assert "none of the pictures" in line
    assert Path(pictures[0]).read_bytes() == before


def test_missing_and_unreadable_files_are_named(pictures, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for path in (tmp_path / "none.png", broken):
        assert str(path) in fails(capsys, str(path), pictures[0], *TINY, "--label", "one")
    line = fails(capsys, pictures[0], "--checkpoint", "nowhere", "--label", "one")
    assert "nowhere" in line


def test_the_commands_of_the_page_run(pictures, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    lines = re.findall(r"^cfmask show (.*)", page, re.M)
    for name, picture in zip(("dog.jpg", "cat.jpg"), pictures):
        Image.open(picture).save(tmp_path / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    for line in lines:
        stand_in = [] if "--checkpoint" in line else TINY
        show_images([*shlex.split(line), *stand_in])
    assert len(lines) == 3 and capsys.readouterr().out.count("Drawn in") == 3
