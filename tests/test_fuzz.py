"""Broken input: nothing but the documented errors, nothing executed, nothing written elsewhere."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from support.checkpoints import Evil, clip, training_checkpoint
from support.fuzzing import edited, fuzz, quietly
from support.pictures import noise
from support.shard_trees import plant_photos
from support.training import DEMO

from cfmask import Classifier, InputError, load_classifier, save_classifier
from cfmask.commands.parser import one_line_errors
from cfmask.commands.train_model import command_line
from cfmask.data.packing import pack
from cfmask.data.shards import ShardImages, find_shards
from cfmask.decoding import read_image
from cfmask.images import Preprocess
from cfmask.runs.resume import newest
from cfmask.weights import read_tensors

EDIT = st.tuples(
    st.sampled_from(["flip", "cut", "drop", "repeat", "insert"]),
    st.floats(0, 1),
    st.binary(max_size=9),
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of all kinds, which the cases break."""
    root = tmp_path_factory.mktemp("kit")
    picture = Image.fromarray(noise(20, 30, seed=1))
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tiff"):
        picture.save(root / name)
    classifier = clip(root / "clip")
    save_classifier(classifier, root / "m.safetensors")
    training_checkpoint(root / "m.ckpt", classifier)
    torch.save(classifier.state_dict(), root / "old.ckpt", _use_new_zipfile_serialization=False)
    (root / "evil.ckpt").write_bytes(pickle.dumps({"x": Evil(root / "made")}))
    torch.save({"state_dict": Evil(root / "made")}, root / "evil2.ckpt")
    pack(plant_photos(root / "photos"), root / "shards", shard_size=9)
    return root


def check_image(kit: Path, name: str, edits: list, work: Path) -> None:
    file = work / name
    file.write_bytes(edited((kit / name).read_bytes(), edits))
    for decoder in ("pil", "fast"):
        try:
            image = Preprocess((8, 8))(read_image(file, decoder))
        except InputError as error:
            assert str(file) in str(error)
        else:
            assert image.shape == (3, 8, 8)
            assert image.dtype == torch.uint8


def check_weights(kit: Path, name: str, edits: list, work: Path) -> None:
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    (work / "checkpoints").mkdir()
    file = work / "checkpoints" / name
    file.write_bytes(edited((kit / name).read_bytes(), edits))
    for read in (load_classifier, read_tensors):
        try:
            result = read(file)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(result, Classifier | dict)
    try:
        newest(work / "checkpoints")
    except InputError as error:
        assert "\n" not in str(error)
    assert not (kit / "made").exists()


def check_shards(kit: Path, name: str, edits: list, work: Path) -> None:
    shutil.rmtree(work / "shards", ignore_errors=True)
    shutil.copytree(kit / "shards", work / "shards")
    files = sorted(path.name for path in (work / "shards").iterdir())
    file = work / "shards" / files[int(name) % len(files)]
    file.write_bytes(edited(file.read_bytes(), edits))
    # Without their index too.
    tars = "{" + ",".join(path for path in files if path.endswith(".tar")) + "}"
    for place in (str(work / "shards"), str(work / "shards" / tars)):
        try:
            images = ShardImages(find_shards(place, work / "cache"), Preprocess((8, 8)))
        except InputError:
            continue
        for i in range(len(images)):
            try:
                image, label = images[i]
            except InputError:
                continue
            assert image.shape == (3, 8, 8)
            assert isinstance(label, int)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers()),
    st.sampled_from(["../x", "/etc/passwd", "os.mkdir", "FineTuning", "cfmask.Classifier"]),
)  # fmt: skip


def check_config(change: list, edits: list, work: Path) -> None:
    content = yaml.safe_load(Path(DEMO).read_text())
    places = [
        (part, key)
        for part in (
            *(content, content["model"], content["model"]["init_args"], content["data"]),
            *(content["data"]["init_args"], content["trainer"], content["evaluation"]),
        )
        for key in part
    ]
    for share, value in change:
        part, key = places[int(share * (len(places) - 1))]
        part[key] = value
    content["run"] = str(work / "run")
    file = work / "config.yaml"
    file.write_bytes(edited(yaml.safe_dump(content).encode(), edits))
    try:
        with one_line_errors():
            command_line(["--config", str(file)])
    except SystemExit as end:
        assert end.code == 2


EDITS = st.lists(EDIT, min_size=1, max_size=4)
PICTURES = ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tiff"]
MODELS = ["m.safetensors", "m.ckpt", "old.ckpt", "evil.ckpt", "evil2.ckpt"]
IMAGES = {"name": st.sampled_from(PICTURES), "edits": EDITS}
WEIGHTS = {"name": st.sampled_from(MODELS), "edits": EDITS}
SHARDS = {"name": st.sampled_from("012345"), "edits": EDITS}
CHANGE = st.lists(st.tuples(st.floats(0, 1), VALUES), max_size=3)
CONFIGS = {"change": CHANGE, "edits": st.lists(EDIT, max_size=1)}


@fuzz(50, **IMAGES)
def test_broken_images(kit, tmp_path, name, edits):
    quietly(check_image, tmp_path / "work", kit, name, edits)


@pytest.mark.filterwarnings("ignore:The checkpoint .* is damaged")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@fuzz(25, **WEIGHTS)
def test_broken_weights(kit, tmp_path, name, edits):
    quietly(check_weights, tmp_path / "work", kit, name, edits)


@fuzz(20, **SHARDS)
def test_broken_shards(kit, tmp_path, name, edits):
    quietly(check_shards, tmp_path / "work", kit, name, edits)


# jsonargparse tells of names that its next major release refuses.
@pytest.mark.filterwarnings("ignore:(?s).*import path denylist")
@fuzz(8, **CONFIGS)
def test_broken_configs(tmp_path, change, edits):
    quietly(check_config, tmp_path / "work", change, edits)


@pytest.mark.slow
@fuzz(1200, **IMAGES)
def test_many_broken_images(kit, tmp_path, name, edits):
    quietly(check_image, tmp_path / "work", kit, name, edits)


@pytest.mark.slow
@fuzz(400, **WEIGHTS)
def test_many_broken_weights(kit, tmp_path, name, edits):
    quietly(check_weights, tmp_path / "work", kit, name, edits)


@pytest.mark.slow
@fuzz(400, **SHARDS)
def test_many_broken_shards(kit, tmp_path, name, edits):
    quietly(check_shards, tmp_path / "work", kit, name, edits)


@pytest.mark.slow
@fuzz(200, **CONFIGS)
def test_many_broken_configs(tmp_path, change, edits):
    quietly(check_config, tmp_path / "work", change, edits)


def test_yaml_that_names_code_is_not_run(tmp_path):
    text = f"run: !!python/object/apply:os.mkdir [{json.dumps(str(tmp_path / 'made'))}]\n"
    (tmp_path / "evil.yaml").write_text(Path(DEMO).read_text() + text)
    with pytest.raises(SystemExit) as end, one_line_errors():
        command_line(["--config", str(tmp_path / "evil.yaml")])
    assert end.value.code == 2
    assert not (tmp_path / "made").exists()
