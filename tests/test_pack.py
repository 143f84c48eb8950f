from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from support.folders import SMALL, plant
from support.pictures import noise
from support.shard_trees import COUNTS, as_webdataset, copied, flip

from cfmask import InputError
from cfmask.commands.pack_images import pack_images
from cfmask.data.packing import pack, verify
from cfmask.data.shard_index import INDEX, ShardIndex, checksum
from cfmask.data.shards import ShardImages


def contents(class_photos: Path) -> Counter[tuple[bytes, str]]:
    return Counter((file.read_bytes(), file.parent.name) for file in class_photos.rglob("*.*"))


def test_shards_hold_the_very_files_of_the_folder(class_photos, packed):
    files = as_webdataset(*sorted(packed.glob("*.tar")))
    names = sorted(COUNTS)
    assert Counter((data, names[label]) for data, label in files) == contents(class_photos)


def test_places_and_labels_are_those_that_webdataset_finds(packed):
    images = ShardImages(ShardIndex.load(packed), SMALL)
    own = [(images.data(i)[0], int(images.labels[i])) for i in range(len(images))]
    assert own == as_webdataset(*sorted(packed.glob("*.tar")))


def test_the_index_counts_and_checks(packed):
    content = json.loads((packed / INDEX).read_text())
    assert content["images"] == 25
    assert dict(zip(content["classes"], content["class_counts"], strict=True)) == COUNTS
    assert [len(shard["labels"]) for shard in content["shards"]] == [6, 6, 6, 6, 1]
    for shard in content["shards"]:
        assert checksum(packed / shard["name"]) == shard["sha256"]


def test_classes_are_mixed_over_the_shards(packed):
    first = ShardIndex.load(packed).shards[0]
    assert len(set(first.labels)) > 1


def test_packing_again_gives_the_same_bytes(class_photos, packed, tmp_path):
    for file in class_photos.rglob("*.*"):
        os.utime(file)
    pack(class_photos, tmp_path / "again", shard_size=6)
    for file in packed.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_command_packs_and_verifies(class_photos, tmp_path, capsys):
    out = tmp_path / "shards"
    pack_images([str(class_photos), f"--out={out}", "--shard_size=10", "--workers=0"])
    assert "25 images of 4 classes in 3 shards" in capsys.readouterr().out
    pack_images([str(out), "--verify=true", "--workers=0"])
    assert "as packed, all readable" in capsys.readouterr().out


def test_the_command_fails_in_one_line(class_photos, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    within = f"--out={class_photos / 'shards'}"
    full = f"--out={tmp_path / 'full'}"
    for args in (["--workers=0"], [full], ["--out=x", "--shard_size=0"], [within]):
        with pytest.raises(SystemExit) as ended:
            pack_images([str(class_photos), *args])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: Expected")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["x"]


def test_a_neighbour_of_the_shards_stays(class_photos, tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "thesis.txt").write_text("years")
    pack(class_photos, tmp_path / "out")
    assert (tmp_path / "out.part" / "thesis.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.part"]


def test_an_unreadable_image_is_not_packed(tmp_path):
    root = plant(tmp_path / "x", {"ant": 3})
    (root / "ant" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"ant/1\.png"):
        pack(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def relabel(folder: Path) -> None:
    content = json.loads((folder / INDEX).read_text())
    labels = content["shards"][1]["labels"]
    labels[0] = (labels[0] + 1) % 4
    (folder / INDEX).write_text(json.dumps(content))


DAMAGE = {
    "a flipped byte": lambda folder: flip(folder / "shard-000001.tar", 700),
    "a cut shard": lambda folder: os.truncate(folder / "shard-000001.tar", 900),
    "a lost shard": lambda folder: (folder / "shard-000001.tar").unlink(),
    "another label": relabel,
}


def test_workers_are_not_negative(class_photos, packed, tmp_path):
    with pytest.raises(InputError, match="at least 0 workers, but got -1"):
        pack(class_photos, tmp_path / "x", workers=-1)
    with pytest.raises(InputError, match="at least 0 workers, but got -1"):
        verify(packed, -1)


@pytest.mark.parametrize("kind", DAMAGE)
def test_verification_names_the_damaged_shard(packed, tmp_path, kind):
    folder = copied(packed, tmp_path / "shards")
    assert len(verify(folder)) == 25
    DAMAGE[kind](folder)
    with pytest.raises(InputError, match=r"shard-000001\.tar"):
        verify(folder)


def test_verification_decodes_every_image(tmp_path):
    # The damage lies within the image, where a look at its ends does not find it.
    root = plant(tmp_path / "x", {"ant": 3})
    Image.fromarray(noise(64, 64)).save(root / "ant" / "1.png")
    flip(root / "ant" / "1.png", 6000)
    pack(root, tmp_path / "out")
    with pytest.raises(InputError, match=r"of shard .*shard-000000\.tar"):
        verify(tmp_path / "out")
