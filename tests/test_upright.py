"""Training and evaluation read an image alike: upright in folders of one's own, else as stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from cfmask import FolderData, ShardData, wordnet
from cfmask.data.packing import pack
from cfmask.images import Preprocess
from cfmask.shift import Request
from cfmask.shifts.catalogue import find_shifts

SIDE = 8
LOOK = Preprocess((SIDE, SIDE), decoder="pil")
# Red on top of blue, and turned by a right angle as the EXIF orientation says that it is.
STORED = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
STORED[: SIDE // 2, :, 0] = STORED[SIDE // 2 :, :, 2] = 255
TURNED = np.rot90(STORED, -1)


def turned_png() -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.fromarray(STORED).save(stream, "PNG", exif=exif)
    return stream.getvalue()


def plant(place: Path, classes: tuple[str, ...], each: int = 2) -> Path:
    for name in classes:
        (place / name).mkdir(parents=True)
        for i in range(each):
            (place / name / f"{name}_{i}.png").write_bytes(turned_png())
    return place


def seen(image: Tensor) -> str:
    pixels = image.permute(1, 2, 0).numpy()
    return {True: "stored", False: "upright"}[np.array_equal(pixels, STORED)] * bool(
        np.array_equal(pixels, STORED) or np.array_equal(pixels, TURNED)
    )


def in_training(data: FolderData | ShardData) -> set[str]:
    data.prepare(LOOK)
    return {seen(part[0][0]) for part in (data.train_set, data.val_set)}


def in_evaluation(name: str, root: Path, classes: tuple[str, ...]) -> tuple[set[str], str]:
    found = find_shifts([name], Request(root, classes, allow_incomplete=True))
    looks = {seen(shift.load(LOOK)[0][0]) for shift in found}
    return looks, " ".join(shift.note for shift in found)


@pytest.mark.parametrize("val", [True, False])
def test_folders_of_ones_own_are_upright_everywhere(tmp_path, val):
    plant(tmp_path / "train", ("ant", "bee"))
    plant(tmp_path / "test", ("ant", "bee"))
    if val:
        plant(tmp_path / "val", ("ant", "bee"))
    folders = FolderData(str(tmp_path), workers=0, val_images=None if val else 1)
    pack(tmp_path / "train", tmp_path.parent / f"{tmp_path.name}-shards")
    shards = ShardData(f"{tmp_path}-shards", workers=0, val_images=1)
    assert in_training(folders) == in_training(shards) == {"upright"}
    looks, note = in_evaluation("folders", tmp_path, ("ant", "bee"))
    assert looks == {"upright"}
    assert folders.reading == shards.reading
    assert folders.reading in note


def test_a_list_of_ones_own_is_upright(tmp_path):
    plant(tmp_path / "images", ("ant", "bee"))
    lines = [f"images/{name}/{name}_0.png,{name},test" for name in ("ant", "bee")]
    (tmp_path / "metadata.csv").write_text("\n".join(["filename,class,split", *lines]))
    looks, note = in_evaluation("folders", tmp_path, ("ant", "bee"))
    assert looks == {"upright"}
    assert "upright" in note


def test_imagenet_is_read_as_stored_everywhere(tmp_path, monkeypatch):
    root = tmp_path / "imagenet"
    plant(root / "val", wordnet.synsets(), 1)
    (root / "train").symlink_to(root / "val")
    folders = FolderData(str(root), "imagenet", workers=0, unreadable="skip")
    monkeypatch.setattr("cfmask.data.packing.refuse_unreadable", lambda *args, **options: None)
    pack(root / "val", tmp_path / "shards")
    shards = ShardData(str(tmp_path / "shards"), workers=0, val_images=100)
    assert in_training(folders) == in_training(shards) == {"stored"}
    classes = folders.class_names
    own, own_note = in_evaluation("folders", root, classes)
    published, published_note = in_evaluation("imagenet/val", root, classes)
    assert own == published == {"stored"}
    assert folders.reading == shards.reading
    assert folders.reading in own_note
    assert folders.reading in published_note


def test_shards_of_imagenet_without_an_index_are_read_as_stored(tmp_path):
    from support.shard_trees import write

    members = {f"{i}.png": turned_png() for i in range(3)} | {f"{i}.cls": b"0" for i in range(3)}
    write(tmp_path / "a.tar", dict(sorted(members.items())))
    for names, look in (
        (list(wordnet.class_names()), "stored"),
        (list(wordnet.synsets()), "stored"),
        (["ant", "bee"], "upright"),
    ):
        data = ShardData(str(tmp_path / "a.tar"), names, workers=0, val_images=1)
        assert in_training(data) == {look}
