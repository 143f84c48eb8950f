"""Evaluation sets of any data set and of shards: images and labels of what they were made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.own_datasets import Columns, Own, Stream
from torch import nn
from torchvision.datasets import ImageFolder

from cfmask import (
    InputError,
    ModuleClassifier,
    Preprocess,
    Request,
    SavedAnswers,
    dataset_shift,
    evaluate,
    find_shifts,
)
from cfmask.comparison.sources import labels_of
from cfmask.shift import Shift

NAMES = ("ant", "bee", "cat", "dog_house")
LOOK = Preprocess((8, 8))


def content(shift: Shift) -> list[tuple[bytes, int]]:
    """Images and labels in a fixed order, whatever that of the set is."""
    data = shift.load(LOOK)
    items = [data[i] for i in range(len(data))]
    return sorted((image.numpy().tobytes(), label) for image, label in items)


def found(root: Path, name: str, names=NAMES) -> Shift:
    (shift,) = find_shifts([f"folders/{name}"], Request(root, names))
    return shift


@pytest.fixture
def root(class_photos, packed, tmp_path) -> Path:
    """The same images in folders, in shards with an index and in shards without."""
    shutil.copytree(class_photos, tmp_path / "id")
    shutil.copytree(packed, tmp_path / "packed")
    shutil.copytree(packed, tmp_path / "foreign", ignore=shutil.ignore_patterns("*.json"))
    return tmp_path


def test_shards_are_the_set_of_their_folders(root):
    expected = content(found(root, "id"))
    assert len(expected) == 25
    assert content(found(root, "packed")) == expected
    # Without names, a label is the number of a class.
    assert content(found(root, "foreign")) == expected
    swapped = ("cat", "dog_house", "bee", "ant")
    moved = [swapped.index(name) for name in NAMES]
    by_name = sorted((image, moved[label]) for image, label in expected)
    assert content(found(root, "packed", swapped)) == content(found(root, "id", swapped)) == by_name


def test_shards_name_the_classes_of_a_model_that_brings_none(root):
    with pytest.raises(InputError, match=r"there is no index\.json beside them"):
        labels_of(["folders"], root)
    (root / "foreign").rename(root / ".foreign")
    assert labels_of(["folders"], root).names == ("ant", "bee", "cat", "dog house")
    shutil.copytree(root / "packed", root / "train")
    assert content(found(root, "packed", tuple("wxyz"))) == content(found(root, "id"))
    with pytest.raises(InputError, match="but got dog_house; leave it out"):
        shutil.rmtree(root / "train")
        found(root, "packed", NAMES[:3])
    (root / ".foreign").rename(root / "foreign")
    with pytest.raises(InputError, match=r"shard .* has 3"):
        found(root, "foreign", NAMES[:3])


def test_shards_are_a_test_set_beside_the_classes_of_an_undivided_folder(root, class_photos):
    for place in class_photos.iterdir():
        shutil.copytree(place, root / place.name)
    shutil.rmtree(root / "id")
    held_out, *others = find_shifts(["folders"], Request(root, NAMES))
    assert held_out.in_distribution
    assert [shift.name for shift in others] == ["folders/foreign", "folders/packed"]
    assert content(others[0]) == content(others[1])


def test_answers_to_shards_are_kept_until_a_shard_changes(root, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    model = ModuleClassifier(net, class_names=NAMES, image_size=8)

    def read() -> int:
        shift = found(root, "foreign")
        report = evaluate({"m": model}, [shift], store=tmp_path / "answers")
        assert report.row("m", shift.name).correct == right
        return report.run["images"]

    right = evaluate({"m": model}, [found(root, "id")]).row("m", "folders/id").correct
    assert (read(), read()) == (25, 0)
    shard = next((root / "foreign").glob("*.tar"))
    shard.write_bytes(shard.read_bytes())
    assert read() == 25


def test_classes_of_a_data_set_go_by_name(class_photos):
    data = ImageFolder(class_photos)
    swapped = ("cat", "dog_house", "bee", "Ant")
    shift = dataset_shift("photos", data, swapped, in_distribution=True)
    order = [data.classes[label] for _, label in data]
    loaded = shift.load(LOOK)
    assert [swapped[loaded[i][1]].lower() for i in range(len(data))] == order
    assert [swapped[label].lower() for label in loaded.labels] == order
    assert shift.in_distribution
    # Other names stand for the classes of the same numbers.
    numbers = dataset_shift("photos", data, tuple("wxyz")).load(LOOK)
    assert [numbers[i][1] for i in range(len(data))] == data.targets
    with pytest.raises(InputError, match="'ant' is class 0 of it and class 2 of the classifier"):
        dataset_shift("photos", data, ("bee", "eel", "ant", "fox"))


def test_saved_answers_to_a_data_set_go_by_its_labels(tmp_path):
    items = [
        {"image": torch.full((3, 8, 8), k, dtype=torch.uint8), "kind": k % 2} for k in range(6)
    ]
    lines = "".join(f"{k},{'ant' if k < 2 else 'bee'}\n" for k in range(6))
    (tmp_path / "a.csv").write_text("path,prediction\n" + lines)
    shift = dataset_shift("mine", Columns(*items), ("ant", "bee"), label_key="kind")
    report = evaluate({"m": SavedAnswers(tmp_path / "a.csv", ("ant", "bee"))}, [shift])
    assert report.row("m", "mine").correct == 3


def test_a_hugging_face_data_set_is_a_set():
    datasets = pytest.importorskip("datasets")
    labels = [0, 1, 1, 0, 1]
    pictures = [Image.new("RGB", (9, 12), (40 * k,) * 3) for k in range(5)]
    kinds = datasets.ClassLabel(names=["dark", "light"])
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    data = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    shift = dataset_shift("hub", data, ("light", "dark"))
    loaded = shift.load(LOOK)
    assert [loaded[i][1] for i in range(5)] == [1 - k for k in labels] == loaded.labels.tolist()
    assert [int(loaded[i][0].max()) for i in range(5)] == [40 * k for k in range(5)]
    with pytest.raises(InputError, match="DatasetDict has test; take one"):
        dataset_shift("hub", datasets.DatasetDict(test=data), ("light", "dark"))
    with pytest.raises(InputError, match="got IterableDataset, which is none"):
        dataset_shift("hub", data.to_iterable_dataset(), ("light", "dark"))


IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)
REFUSED = {
    "several classes": (Own((IMAGE, [0, 1])), r"multi-label"),
    "shares": (Own((IMAGE, torch.tensor([0.0, 1.0, 1.0]))), "multi-label"),
    "splits": ({"test": Own((IMAGE, 0))}, "one dataset, but dict has test; take one"),
    "a stream": (Stream(), "length and items by number, but got Stream"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_set_is_refused_in_one_line(kind):
    data, line = REFUSED[kind]
    with pytest.raises(InputError, match=line) as caught:
        dataset_shift("x", data, ("a", "b", "c")).load(LOOK)[0]
    assert "\n" not in str(caught.value)
