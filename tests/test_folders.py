from __future__ import annotations

import pytest
import torch
from PIL import features
from support.folders import SHADES, SMALL, picture, plant

from cfmask import FolderData, InputError
from cfmask.data.file_index import class_folders
from cfmask.data.folders import Folder, hold_out
from cfmask.images import Preprocess


def shades_and_labels(data) -> set[tuple[int, int]]:
    return {(int(image[0, 0, 0]), int(label)) for image, label in data}


def test_labels_follow_the_sorted_folders(tmp_path):
    data = Folder(plant(tmp_path / "x", {"cat": 2, "ant": 1, "bee": 3}), SMALL)
    assert data.classes == ["ant", "bee", "cat"]
    assert len(data) == 6
    assert data[0][0].shape == (3, 8, 8)
    assert data[0][0].dtype == torch.uint8
    assert shades_and_labels(data[i] for i in range(6)) == {(10, 0), (60, 1), (110, 2)}


def test_labels_follow_the_given_order_of_classes(tmp_path):
    root = plant(tmp_path / "x", {"ant": 1, "bee": 1, "cat": 1})
    data = Folder(root, SMALL, ["cat", "ant", "bee"])
    assert shades_and_labels(data[i] for i in range(3)) == {(10, 1), (60, 2), (110, 0)}
    assert data.labels.tolist() == [data[i][1] for i in range(3)]


def test_a_set_may_lack_classes(tmp_path):
    root = plant(tmp_path / "x", {"bee": 2, "dog_house": 1})
    data = Folder(root, SMALL, list(SHADES))
    assert shades_and_labels(data[i] for i in range(3)) == {(60, 1), (160, 3)}


SUFFIXES = [".jpg", ".JPEG", ".png", ".bmp", ".tiff", ".gif", ".webp"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_of_every_format_count(tmp_path, suffix):
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    root = plant(tmp_path / "x", {"ant": 1})
    picture("ant").save(root / "ant" / f"other{suffix}")
    assert len(Folder(root, SMALL)) == 2


def test_pictures_in_folders_below_a_class_count(tmp_path):
    root = plant(tmp_path / "x", {"ant": 1})
    plant(root / "ant", {"more": 2})
    assert len(Folder(root, SMALL)) == 3


def test_other_files_are_passed_over(tmp_path):
    root = plant(tmp_path / "x", {"ant": 2})
    (root / "ant" / "notes.txt").write_text("no picture")
    (root / "README.md").write_text("no class")
    assert len(Folder(root, SMALL)) == 2


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Folder(tmp_path / "nowhere", SMALL)


def test_a_folder_without_class_folders_is_named(tmp_path):
    picture("ant").save(tmp_path / "x.png")
    with pytest.raises(InputError, match=tmp_path.name):
        class_folders(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    root = plant(tmp_path / "x", {"ant": 1, "bee": 0, "cat": 1})
    with pytest.raises(InputError, match="bee") as caught:
        Folder(root, SMALL)
    assert str(root) in str(caught.value)
    assert "ant" not in str(caught.value).replace(str(root), "")


def test_a_class_that_training_lacks_is_named(tmp_path):
    root = plant(tmp_path / "x", {"ant": 1, "bee": 1})
    with pytest.raises(InputError, match="bee") as caught:
        Folder(root, SMALL, ["ant", "cat"])
    assert str(root) in str(caught.value)


def labels_of(*counts: int) -> torch.Tensor:
    """So many labels of each class, shuffled."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [1, 7, 15, 25, 49])
@pytest.mark.parametrize(
    "sizes", [(10,) * 5, (25, 15, 10), (30, 18, 2), (40, 2, 2, 2, 2, 2), (25,) + (1,) * 25]
)
def test_a_hold_out_is_exact_and_in_proportion(sizes, count, seed):
    labels = labels_of(*sizes)
    kept, held = hold_out(labels, count, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(50))
    assert len(held) == count
    ideal = torch.tensor(sizes) * count / 50
    assert (labels[held].bincount(minlength=len(sizes)) - ideal).abs().max() <= 1


def test_a_hold_out_is_the_same_for_the_same_seed_alone():
    labels = labels_of(40, 40, 40)
    torch.manual_seed(5)
    first = hold_out(labels, 30, 0)[1]
    torch.manual_seed(6)
    assert torch.equal(first, hold_out(labels, 30, 0)[1])
    assert not torch.equal(first, hold_out(labels, 30, 1)[1])


@pytest.mark.parametrize("count", [-1, 0, 6, 7])
def test_a_hold_out_leaves_images_on_both_sides(count):
    with pytest.raises(InputError, match=f"got {count}"):
        hold_out(labels_of(3, 3), count, 0)


def test_class_names_are_those_of_the_folders(tmp_path):
    plant(tmp_path / "train", dict.fromkeys(SHADES, 1))
    assert FolderData(str(tmp_path)).class_names == ("ant", "bee", "cat", "dog house")


def test_class_names_can_be_given_by_folder(tmp_path):
    plant(tmp_path / "train", dict.fromkeys(SHADES, 1))
    data = FolderData(str(tmp_path), {"bee": "honey_bee"})
    assert data.class_names == ("ant", "honey_bee", "cat", "dog house")


def test_one_class_alone_is_refused_at_once(tmp_path):
    plant(tmp_path / "train", {"ant": 2})
    with pytest.raises(InputError, match=r"at least 2 classes in .*train, but got 1 \(ant\)"):
        FolderData(str(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"batch_size": 0}, {"batch_size": -3}, {"seed": 1 << 70}]
)
def test_numbers_below_their_least_are_refused_at_once(tmp_path, wrong):
    plant(tmp_path / "train", {"ant": 2, "bee": 2})
    with pytest.raises(
        InputError, match=f"(at least|from) [01].*, but got {next(iter(wrong.values()))}"
    ):
        FolderData(str(tmp_path), **wrong)


def test_a_class_name_for_no_folder_is_refused(tmp_path):
    plant(tmp_path / "train", {"ant": 1})
    with pytest.raises(InputError, match="wasp"):
        FolderData(str(tmp_path), {"wasp": "wasp"})


@pytest.mark.parametrize("empty", [False, True])
def test_a_root_without_training_images_is_refused(tmp_path, empty):
    if empty:
        (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="train"):
        FolderData(str(tmp_path))


def test_a_validation_folder_is_used_if_there_is_one(tmp_path):
    plant(tmp_path / "train", {"ant": 4, "bee": 4})
    plant(tmp_path / "val", {"bee": 3})
    train, val = FolderData(str(tmp_path)).load(SMALL)
    assert (len(train), len(val)) == (8, 3)
    assert shades_and_labels(val[i] for i in range(3)) == {(60, 1)}


@pytest.mark.parametrize(("val_images", "count"), [(0.25, 5), (4, 4), (1, 1)])
def test_training_images_are_held_out_where_there_is_no_validation_folder(
    tmp_path, val_images, count
):
    plant(tmp_path / "train", {"ant": 10, "bee": 10})
    train, val = FolderData(str(tmp_path), val_images=val_images).load(SMALL)
    assert (len(train), len(val)) == (20 - count, count)
    assert not set(train.indices) & set(val.indices)
    assert shades_and_labels(train[i] for i in range(len(train))) == {(10, 0), (60, 1)}


@pytest.mark.parametrize("val_images", [0, -0.5, 4])
def test_a_hold_out_of_nothing_or_all_is_refused(tmp_path, val_images):
    plant(tmp_path / "train", {"ant": 2, "bee": 2})
    with pytest.raises(InputError, match="hold out"):
        FolderData(str(tmp_path), val_images=val_images).load(SMALL)


def test_data_can_be_set_up_without_a_trainer(tmp_path):
    plant(tmp_path / "train", {"ant": 3, "bee": 3})
    data = FolderData(str(tmp_path), val_images=2, batch_size=4, workers=0)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, *Preprocess().size)
    assert sorted(labels.tolist()) == [0, 1]


def test_batches_cross_as_bytes_and_become_floats(tmp_path):
    plant(tmp_path / "train", {"ant": 3, "bee": 3})
    data = FolderData(str(tmp_path), val_images=2, batch_size=4, workers=0)
    data.prepare(SMALL)
    images, labels = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8
    floats, same = data.on_after_batch_transfer((images, labels), 0)
    assert floats.dtype == torch.float32
    assert same is labels
    assert floats.amin() >= 0
    assert floats.amax() <= 1
    expected = torch.tensor([SHADES[name] / 255 for name in ("ant", "bee")])[labels]
    torch.testing.assert_close(floats[:, 0, 0, 0], expected)


@pytest.mark.parametrize(("images", "batches"), [(8, 2), (9, 2), (10, 3)])
def test_a_last_batch_of_one_image_is_dropped(tmp_path, images, batches):
    plant(tmp_path / "train", {"ant": images - 1, "bee": 1})
    plant(tmp_path / "val", {"ant": images - 1, "bee": 1})
    data = FolderData(str(tmp_path), batch_size=4, workers=0)
    data.prepare(SMALL)
    assert len(list(data.train_dataloader())) == batches
    assert sum(len(labels) for _, labels in data.val_dataloader()) == images


def test_training_images_are_shuffled_and_validation_images_are_not(tmp_path):
    plant(tmp_path / "train", {"ant": 20, "bee": 20})
    plant(tmp_path / "val", {"ant": 5, "bee": 5})
    data = FolderData(str(tmp_path), batch_size=40, workers=0)
    data.prepare(SMALL)
    loader = data.train_dataloader()
    first = next(iter(loader))[1]
    loader.sampler.set_epoch(1)
    second = next(iter(loader))[1]
    assert sorted(first.tolist()) == sorted(second.tolist()) == [0] * 20 + [1] * 20
    assert not torch.equal(first, second)
    assert next(iter(data.val_dataloader()))[1].tolist() == [0] * 5 + [1] * 5
