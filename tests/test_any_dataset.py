"""Training on any dataset of (image, label)."""

from __future__ import annotations

import inspect
import io
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from support.own_datasets import PIXELS, SIDE, TENSOR, Columns, Own, Stream
from support.training import DEMO
from torchvision.datasets import FakeData

from cfmask import (
    DatasetData,
    FolderData,
    InputError,
    RandomCrop,
    ShardData,
    TrainingData,
    UnreadableImage,
)
from cfmask.commands.train_model import command_line
from cfmask.images import Preprocess

LOOK = Preprocess((SIDE, SIDE))


def data_of(*items, **options) -> DatasetData:
    data = DatasetData(Own(*items), ["ant", "bee"], Own(*items), workers=0, **options)
    data.prepare(LOOK)
    return data


def lazy() -> Image.Image:
    """A picture of a file that is not decoded yet."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return Image.open(stream)


IMAGES = {
    "picture": lambda: Image.fromarray(PIXELS),
    "file": lazy,
    "transparent picture": lambda: Image.fromarray(PIXELS).convert("RGBA"),
    "array": lambda: PIXELS,
    "bytes": lambda: TENSOR,
    "floats": lambda: TENSOR / 255,
    "halves": lambda: (TENSOR / 255).half(),
    "doubles": lambda: TENSOR.double() / 255,
}
LABELS = [1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32)]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: type(label).__name__)
@pytest.mark.parametrize("kind", IMAGES)
def test_images_and_labels_of_any_kind_are_read_alike(kind, label):
    data = data_of((IMAGES[kind](), label), {"image": IMAGES[kind](), "label": label, "id": 3})
    for image, number in (data.train_set[0], data.val_set[1]):
        # Halves have eleven bits, which is enough to tell 256 values apart.
        assert torch.equal(image, TENSOR)
        assert (type(number), number) == (int, 1)


def test_grey_images_have_three_channels():
    for image in (PIXELS[..., 0], PIXELS[..., :1], TENSOR[:1], TENSOR[:1] / 255):
        seen, _ = data_of((image, 0)).train_set[0]
        assert torch.equal(seen, TENSOR[:1].expand(3, -1, -1))


def test_pictures_come_upright():
    exif, stream = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.fromarray(PIXELS).save(stream, "PNG", exif=exif)
    seen, _ = data_of((Image.open(stream), 0)).train_set[0]
    assert np.array_equal(seen.permute(1, 2, 0), np.rot90(PIXELS, -1))


REFUSED = {
    "normalised": (((TENSOR / 255) - 0.5, 0), r"floats in \[0, 1\], but got torch.float32"),
    "floats of bytes": ((TENSOR.float(), 0), "leave out normalisation"),
    "not a number": ((TENSOR * float("nan"), 0), "leave out normalisation"),
    "wider integers": ((TENSOR.int(), 0), "torch.int32"),
    "channels last": ((TENSOR.permute(1, 2, 0), 0), r"got Tensor \(8, 8, 3\)"),
    "a path": (("x.jpg", 0), "got str"),
    "nothing": ((TENSOR[:, :0], 0), "got Tensor"),
    "a name for a label": ((TENSOR, "bee"), "label of item 0 of Own .*'bee'"),
    "a share for a label": ((TENSOR, torch.tensor([0.2, 0.8])), "label of item 0 of Own"),
    "a label below": ((TENSOR, -1), "from 0 to 1, but item 0 of Own has -1"),
    "a label above": ((TENSOR, 2), "from 0 to 1, but item 0 of Own has 2"),
    "no label": (TENSOR, "pair of image and label"),
    "other keys": ({"img": TENSOR, "label": 0}, "image and label, but got img, label"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_items_of_another_kind_are_refused_in_one_line(kind):
    item, line = REFUSED[kind]
    with pytest.raises(InputError, match=line) as caught:
        data_of(item, unreadable="skip").train_set[0]
    assert not isinstance(caught.value, UnreadableImage)


def test_a_bug_of_the_dataset_keeps_its_traceback():
    data = data_of((TENSOR, 0), ValueError("a bug"), unreadable="skip")
    with pytest.raises(ValueError, match="a bug"):
        data.train_set[1]


def test_unreadable_images_are_skipped_and_counted():
    cut = Image.open(io.BytesIO(IMAGES["file"]().fp.getvalue()[:150]))
    data = data_of((TENSOR, 0), (cut, 1), UnreadableImage("mine"), unreadable="skip")
    assert [data.train_set[i][1] for i in range(3)] == [0, 0, 0]
    assert data.skips() == 2


def test_a_dataset_tells_its_classes_and_labels():
    items = [{"image": TENSOR, "kind": i % 2} for i in range(20)]
    data = DatasetData(Columns(*items), label_key="kind", val_images=4, workers=0)
    data.prepare(LOOK)
    assert data.class_names == ("ant", "bee")
    assert sorted(label for _, label in data.val_set) == [0, 0, 1, 1]
    assert len(data.train_set) == 16


def test_a_dataset_that_tells_no_labels_is_held_out_of_at_random():
    data = DatasetData(Own(*[(TENSOR, i % 2) for i in range(20)]), ["ant", "bee"], workers=0)
    data.prepare(LOOK)
    assert (len(data.train_set), len(data.val_set)) == (18, 2)


@pytest.mark.parametrize("data", [Stream(), 3, iter([])])
def test_a_dataset_without_a_length_is_refused(data):
    with pytest.raises(InputError, match="a dataset with a length"):
        DatasetData(data, ["ant", "bee"])


def test_class_names_are_asked_for():
    with pytest.raises(InputError, match="Expected class_names for Own"):
        DatasetData(Own((TENSOR, 0)))
    with pytest.raises(InputError, match="at least 2 classes"):
        DatasetData(Own((TENSOR, 0)), ["ant"])


def test_the_command_builds_any_dataset_by_its_class(tmp_path):
    args = ["--config", DEMO, f"--run={tmp_path / 'run'}", "--data=DatasetData", "--data.workers=0"]
    made = {"size": 12, "image_size": [3, 9, 9], "num_classes": 3}
    options = [f"--data.train.{name}={value}" for name, value in made.items()]
    names = '--data.class_names=["a","b","c"]'
    cli = command_line([*args, "--data.train=torchvision.datasets.FakeData", *options, names])
    cli.datamodule.prepare(LOOK)
    assert isinstance(cli.datamodule.train, FakeData)
    image, label = cli.datamodule.train_set[0]
    assert image.shape == (3, SIDE, SIDE)
    assert label in range(3)


def test_a_crop_is_for_training_alone():
    data = data_of((TENSOR, 0), crop=RandomCrop((0.1, 0.2)))
    assert not torch.equal(data.train_set[0][0], TENSOR)
    assert torch.equal(data.val_set[0][0], TENSOR)


@pytest.mark.parametrize("kind", [FolderData, ShardData, DatasetData])
def test_arguments_that_are_handed_on_are_those_of_all_training_data(kind):
    shared = inspect.signature(TrainingData.__init__).parameters
    shown = inspect.signature(kind.__init__).parameters
    assert "loading" not in shown
    for name in ("batch_size", "workers", "seed", "decoder", "crop", "unreadable", "augmentation"):
        assert shown[name].default == shared[name].default
        assert get_type_hints(kind.__init__)[name] == get_type_hints(TrainingData.__init__)[name]
