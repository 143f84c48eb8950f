"""Augmentation by any transform: before crop and resizing, a function of seed, epoch and image."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2

from cfmask import DatasetData, FolderData, InputError, Preprocess, RandomCrop, ShardData
from cfmask.commands.train_model import command_line
from cfmask.data.epochs import Seeded
from cfmask.decoding import read_image
from cfmask.images import Augmented, as_bytes
from cfmask.runs.parts import training_data_of
from cfmask.runs.run_folder import RunFolder

SMALL = Preprocess((8, 8))
MODULE = """
import random
import numpy
import torch

class Shade(torch.nn.Module):
    def __init__(self, most: int = 90) -> None:
        super().__init__()
        self.most = most

    def forward(self, picture):
        drawn = random.randrange(30), numpy.random.randint(30), int(torch.randint(30, ()))
        return torch.full_like(picture, sum(drawn) * self.most // 90)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with a transform that draws from all three generators."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_transforms.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_transforms", None)


def shade():
    names: dict = {}
    exec(MODULE, names)
    return names["Shade"]()


MORE = (
    '[{"class_path": "torchvision.transforms.v2.RandAugment", "init_args": {"num_ops": 1}}, '
    '{"class_path": "my_transforms.Shade", "init_args": {"most": 45}}]'
)
TRANSFORMS = {"RandAugment": v2.RandAugment, "Trivial": v2.TrivialAugmentWide, "own": shade}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_chance_is_a_function_of_seed_epoch_and_image(kind, class_photos):
    data = FolderData(str(class_photos.parent), None, 4, workers=0, augmentation=TRANSFORMS[kind]())
    data.prepare(SMALL)
    count = len(data.train_set)
    seeded = Seeded(data.train_set, 5)
    first = [seeded[draw][0] for draw in range(3 * count)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    again = {draw: seeded[draw][0] for draw in reversed(range(3 * count))}
    assert all(torch.equal(again[draw], image) for draw, image in enumerate(first))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    moved = sum(not torch.equal(first[i], first[count + i]) for i in range(count))
    assert moved > count // 2


def test_only_training_images_are_augmented_of_folders_shards_and_data_sets(class_photos, packed):
    def pictures(**more):
        root = {"workers": 0, **more}
        yield FolderData(str(class_photos.parent), None, 4, **root)
        yield ShardData(str(packed), None, None, 4, **root)
        pairs = [(torch.full((3, 9, 9), 10 * i, dtype=torch.uint8), i % 2) for i in range(12)]
        yield DatasetData(pairs, ["a", "b"], None, 4, **root)

    for plain, changed in zip(pictures(), pictures(augmentation=[v2.RandomInvert(1.0)])):
        for data in (plain, changed):
            data.prepare(SMALL)
        assert all(
            torch.equal(plain.val_set[i][0], changed.val_set[i][0])
            for i in range(len(plain.val_set))
        )
        # Of one colour each, so that resizing commutes with the inversion but for rounding.
        for i in range(len(plain.train_set)):
            expected = 255 - plain.train_set[i][0].int()
            assert (changed.train_set[i][0].int() - expected).abs().max() <= 1


@pytest.mark.parametrize("decoder", ["fast", "pil"])
def test_transforms_come_one_after_the_other_and_before_the_crop(decoder, class_photos):
    path = next(class_photos.rglob("*.*"))
    look = Preprocess((8, 8), decoder=decoder)
    first, second, crop = v2.RandomInvert(1.0), v2.RandomRotation(180), RandomCrop((0.3, 1.0))
    torch.manual_seed(3)
    made = Augmented([first, second], crop)(read_image(path, decoder), look)
    torch.manual_seed(3)
    turned = second(first(as_bytes(read_image(path, "pil"))))
    if decoder == "pil":
        turned = v2.functional.to_pil_image(turned)
    assert torch.equal(made, crop(turned, look))


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (v2.ToDtype(torch.float32, scale=True), r"ToDtype to give images uint8.*float32"),
        (v2.Grayscale(), r"got torch.uint8 \(1, 9, 9\)"),
        (lambda picture: None, "NoneType"),
    ],
)
def test_what_gives_no_picture_is_refused_in_one_line(transform, says):
    with pytest.raises(InputError, match=says):
        Augmented([transform])(torch.zeros(3, 9, 9, dtype=torch.uint8), SMALL)


def test_the_command_takes_class_paths_also_of_the_working_folder(here, class_photos):
    tiny = ["--model=timm:test_vit/random", "--run=run", "--data.val_images=4"]
    before = list(sys.path)
    cli = command_line([str(class_photos.parent), *tiny, "--data.augmentation", MORE])
    first, second = cli.datamodule.crop.transforms
    assert (type(first), first.num_ops) == (v2.RandAugment, 1)
    assert (type(second).__module__, second.most) == ("my_transforms", 45)
    assert sys.path == before
    assert "my_transforms.Shade" in cli.config_text()


def test_pictures_of_a_run_are_shown_without_it(here, class_photos):
    (here / "run").mkdir()
    init = {"root": str(class_photos.parent), "val_images": 4, "augmentation": json.loads(MORE)}
    config = {"data": {"class_path": "cfmask.FolderData", "init_args": init}}
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert training_data_of(RunFolder(here / "run")).crop is None
