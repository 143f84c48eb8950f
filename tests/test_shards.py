from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter

import numpy as np
import pytest
import webdataset
from PIL import Image
from support.folders import SHADES, SMALL
from support.samples import seen
from support.shard_trees import COUNTS, copied, png, write

from cfmask import InputError, ShardData
from cfmask.data.folders import Folder
from cfmask.data.shard_index import INDEX, ShardIndex, scan
from cfmask.data.shards import ShardImages


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_once_an_epoch_with_its_label(packed, workers):
    data = ShardData(str(packed), val_images=4, batch_size=7, workers=workers)
    data.prepare(SMALL)
    first, second = seen(data), seen(data, epoch=1)
    assert first != second
    assert sorted(first) == sorted(second)
    held = [int(data.val_set[i][1]) for i in range(4)]
    own = Counter(label for _, label in first) + Counter(held)
    assert own == dict(enumerate(COUNTS.values()))


def test_images_are_those_of_the_folder_decoded_alike(class_photos, packed):
    folder, shards = Folder(class_photos, SMALL), ShardImages(ShardIndex.load(packed), SMALL)
    own, others = (
        Counter((image.numpy().tobytes(), label) for image, label in (d[i] for i in range(25)))
        for d in (folder, shards)
    )
    assert own == others


def test_class_names_come_from_the_index(packed):
    assert ShardData(str(packed)).class_names == ("ant", "bee", "cat", "dog house")
    named = ShardData(str(packed), {"bee": "honey bee"})
    assert named.class_names == ("ant", "honey bee", "cat", "dog house")
    with pytest.raises(InputError, match="wasp"):
        ShardData(str(packed), {"wasp": "wasp"})
    with pytest.raises(InputError, match="ImageNet"):
        ShardData(str(packed), "imagenet")


def test_some_of_the_shards_can_be_held_out(packed):
    data = ShardData(
        str(packed / "shard-{000000..000002}.tar"), val_shards=str(packed / "shard-000003.tar")
    )
    data.prepare(SMALL)
    assert (len(data.train_set), len(data.val_set)) == (18, 6)
    assert data.class_names[3] == "dog house"


def test_shards_of_others_need_no_index(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a-00.tar")) as tar:
        for k in range(5):
            tar.write({"__key__": f"some/{k:03}", "png": png(k), "cls": k % 3, "json": {"k": k}})
    write(tmp_path / "a-01.tar", {"x.JPG": png(7), "x.cls": b"2\n"})
    pattern = str(tmp_path / "a-{00..01}.tar")
    with pytest.raises(InputError, match="class_names"):
        ShardData(pattern)
    with pytest.raises(InputError, match="labels from 0 to 1"):
        ShardData(pattern, ["a", "b"])
    data = ShardData(pattern, ["a", "b", "c"], val_images=2, workers=0)
    data.prepare(SMALL)
    assert data.index.labels.tolist() == [0, 1, 2, 0, 1, 2]
    images = ShardImages(data.index, SMALL)
    assert [images.data(i)[0] for i in range(6)] == [png(k) for k in (0, 1, 2, 3, 4, 7)]


UNSAFE = {
    "a path above": {"../x.png": png(), "../x.cls": b"0"},
    "a path above, hidden": {"a/../../x.png": png(), "a/../../x.cls": b"0"},
    "an absolute path": {"/tmp/x.png": png(), "/tmp/x.cls": b"0"},
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_members_that_leave_the_shard_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match="leaves it"):
        scan(write(tmp_path / "x.tar", UNSAFE[kind]))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match="no plain file"):
        scan(write(tmp_path / "x.tar", {"x.png": b"", "x.cls": b""}, kind))


WRONG = {
    "an image without a class": {"x.png": png()},
    "a class without an image": {"x.cls": b"0"},
    "a class that is no number": {"x.png": png(), "x.cls": b"ant"},
    "two images of one name": {"x.png": png(), "x.jpg": png(), "x.cls": b"0"},
    "nothing": {},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_shard_of_another_layout_is_named(tmp_path, kind):
    path = write(tmp_path / "odd.tar", WRONG[kind])
    with pytest.raises(InputError, match=r"odd\.tar") as caught:
        scan(path)
    assert "\n" not in str(caught.value)


INDICES = {
    "no text": b"\xff\xfe",
    "no json": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "another format": b'{"format": "x"}',
    "a shard above": json.dumps(
        {"format": "cfmask shards 1", "classes": ["a"], "shards": [
            {"name": "../x.tar", "bytes": 9, "sha256": "", "labels": [], "offsets": [], "sizes": []}
        ]}
    ).encode(),
    "a place outside": json.dumps(
        {"format": "cfmask shards 1", "classes": ["a"], "shards": [
            {"name": "x.tar", "bytes": 9, "sha256": "", "labels": [0], "offsets": [5], "sizes": [5]}
        ]}
    ).encode(),
    "a label outside": json.dumps(
        {"format": "cfmask shards 1", "classes": ["a"], "shards": [
            {"name": "x.tar", "bytes": 9, "sha256": "", "labels": [1], "offsets": [5], "sizes": [1]}
        ]}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDICES)
def test_a_wrong_index_is_one_line(tmp_path, kind):
    (tmp_path / INDEX).write_bytes(INDICES[kind])
    with pytest.raises(InputError) as caught:
        ShardIndex.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_not_whole_is_named_before_training(packed, tmp_path):
    folder = copied(packed, tmp_path / "shards")
    os.truncate(folder / "shard-000002.tar", 2000)
    with pytest.raises(InputError, match=r"shard-000002\.tar of \d+ bytes, but it has 2000"):
        ShardData(str(folder))


@pytest.mark.parametrize("where", ["nowhere", "nowhere/x.tar", "nowhere/x-{0..2}.tar"])
def test_shards_that_are_not_there_are_named(tmp_path, where):
    with pytest.raises(InputError, match="nowhere"):
        ShardData(str(tmp_path / where))


def test_an_unreadable_image_names_its_shard_or_is_skipped(packed, tmp_path):
    folder = copied(packed, tmp_path / "shards")
    index = ShardIndex.load(folder)
    place = index.shards[1].offsets[2]
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.seek(place)
        file.write(bytes(index.shards[1].sizes[2]))
    data = ShardData(str(folder), workers=0)
    data.prepare(SMALL)
    with pytest.raises(InputError, match=rf"byte {place} of shard .*shard-000001\.tar"):
        list(data.train_dataloader()), list(data.val_dataloader())
    data = ShardData(str(folder), workers=0, unreadable="skip")
    data.prepare(SMALL)
    total = sum(
        len(y) for loader in (data.train_dataloader(), data.val_dataloader()) for _, y in loader
    )
    assert (total, data.skips()) == (25, 1)


def test_a_shade_tells_the_class(packed):
    images = ShardImages(ShardIndex.load(packed), SMALL)
    exact = [i for i in range(25) if images.data(i)[0].startswith(b"\x89PNG")]
    names = sorted(COUNTS)
    assert exact
    for i in exact:
        data = np.asarray(Image.open(io.BytesIO(images.data(i)[0])))
        assert data[0, 0, 0] == SHADES[names[int(images.labels[i])]]
