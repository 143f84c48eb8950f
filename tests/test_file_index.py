from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from support.file_times import age
from support.folders import plant
from torchvision.datasets import ImageFolder

from cfmask import InputError, UnreadableImage
from cfmask.data import file_index
from cfmask.data.file_index import FileIndex, cache_file
from cfmask.data.folders import Folder
from cfmask.images import Preprocess

COUNTS = {"ant": 3, "bee": 2, "cat": 4}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder that counts as large, changed an hour ago, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "LARGE", 2)
    root = plant(tmp_path / "x", COUNTS)
    plant(root / "bee", {"inner": 2})
    age(root)
    return root


def names(index: FileIndex) -> list[str]:
    return [os.path.relpath(index.path(i), index.root) for i in range(len(index))]


def samples(index: FileIndex) -> list[tuple[str, int]]:
    return [(index.path(i), int(index.owners[i])) for i in range(len(index))]


def no_listing(*args):
    raise AssertionError("the folder was listed")


def test_the_list_is_that_of_torchvision(root):
    assert samples(FileIndex.of(root)) == ImageFolder(root).samples
    assert FileIndex.of(root).classes == ("ant", "bee", "cat")


def test_a_large_folder_is_listed_once(root, monkeypatch):
    first = FileIndex.of(root)
    monkeypatch.setattr(file_index, "_pictures", no_listing)
    again = FileIndex.of(root)
    assert samples(again) == samples(first)
    assert (again.classes, again.folders, again.sound) == (first.classes, first.folders, False)


def test_names_outside_ascii_are_kept(root):
    (root / "ant" / "Blüte ж.png").write_bytes((root / "ant" / "0.png").read_bytes())
    age(root)
    first = FileIndex.of(root)
    assert "ant/Blüte ж.png" in names(first)
    assert names(FileIndex.of(root)) == names(first)


CHANGES = {
    "a new file": lambda root: shutil.copy(root / "ant" / "0.png", root / "ant" / "9.png"),
    "a new file further down": lambda root: shutil.copy(
        root / "ant" / "0.png", root / "bee" / "inner" / "9.png"
    ),
    "a removed file": lambda root: (root / "cat" / "0.png").unlink(),
    "a renamed file": lambda root: (root / "cat" / "0.png").rename(root / "cat" / "z.png"),
    "a new class": lambda root: plant(root, {"dog": 2}),
    "a removed class": lambda root: shutil.rmtree(root / "ant"),
    "a renamed class": lambda root: (root / "ant").rename(root / "wasp"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_folder_shows(root, change):
    before = names(FileIndex.of(root))
    CHANGES[change](root)
    after = names(FileIndex.of(root))
    assert after != before
    assert after == [os.path.relpath(path, root) for path, _ in ImageFolder(root).samples]


def test_a_folder_that_has_just_changed_is_not_kept(root):
    (root / "ant" / "0.png").rename(root / "ant" / "7.png")
    FileIndex.of(root)
    assert not cache_file(root).exists()


def test_a_small_folder_is_not_kept(root, monkeypatch):
    monkeypatch.setattr(file_index, "LARGE", 100)
    FileIndex.of(root)
    assert not cache_file(root).exists()


def npz(**arrays) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["XDG_CACHE_HOME"] + "/executed",))


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "pickle", "other arrays", "object array"])
def test_a_damaged_cache_is_made_anew_and_executes_nothing(root, kind):
    good = names(FileIndex.of(root))
    file = cache_file(root)
    file.write_bytes(
        {
            "empty": b"",
            "text": b"no index",
            "cut": file.read_bytes()[:500],
            "pickle": pickle.dumps(Bomb()),
            "other arrays": npz(a=np.zeros(3)),
            "object array": npz(folders=np.array([Bomb()], dtype=object)),
        }[kind]
    )
    assert names(FileIndex.of(root)) == good
    assert not (file.parent.parent / "executed").exists()


def test_a_cache_that_cannot_be_written_does_no_harm(root):
    Path(os.environ["XDG_CACHE_HOME"]).write_text("a file where the folder should be")
    assert len(FileIndex.of(root)) == 11


def test_a_folder_that_leads_back_to_itself_is_refused(root):
    (root / "ant" / "loop").symlink_to(root / "ant")
    with pytest.raises(InputError, match="loop"):
        FileIndex.of(root)


def test_a_folder_behind_several_links_is_listed_once_a_class(root):
    place = root / "ant" / "level0"
    for level in range(40):
        place.mkdir()
        (place / f"{level}.png").write_bytes(b"")
        (place / "twin").symlink_to(place / f"level{level + 1}")
        place /= f"level{level + 1}"
    place.mkdir()
    found = [name for name in names(FileIndex.of(root)) if "level" in name]
    assert sorted(int(Path(name).stem) for name in found) == list(range(40))


LINKS = {
    "to itself": lambda link: link.symlink_to(link),
    "to nothing": lambda link: link.symlink_to(link.parent / "nowhere"),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("place", ["dog", "ant/more"])
def test_a_link_that_leads_nowhere_is_named(root, kind, place):
    LINKS[kind](root / place)
    with pytest.raises(InputError, match=f"the link .*{place} cannot be followed: "):
        FileIndex.of(root)


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_called_like_an_image_is_one_that_cannot_be_read(root, kind):
    LINKS[kind](root / "ant" / "9.png")
    assert "ant/9.png" in names(FileIndex.of(root))
    with pytest.raises(UnreadableImage, match=r"ant/9\.png"):
        Folder(root, Preprocess())[3]


@pytest.mark.parametrize("place", ["", "ant", "bee/inner"])
def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch, place):
    real = os.scandir

    def denied(path):
        if Path(path) == root / place:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=f"Cannot list {root / place}: Permission denied"):
        FileIndex.of(root)


def test_images_whose_names_are_no_utf_8_are_read_and_classes_refused(root):
    odd = os.fsdecode(b"caf\xe9")
    image = (root / "ant" / "0.png").read_bytes()
    (root / "ant" / f"{odd}.png").write_bytes(image)
    (root / "ant" / "a\nb.png").write_bytes(image)
    age(root)
    for _ in range(2):
        found = Folder(root, Preprocess())
        assert {f"ant/{odd}.png", "ant/a\nb.png"} < set(names(found.index))
        assert len([found[i] for i in range(len(found))]) == 13
    (root / odd).mkdir()
    with pytest.raises(InputError, match=r"UTF-8, but .*caf\\udce9 has none"):
        FileIndex.of(root)


def test_a_user_without_a_home_has_no_cache(root, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert cache_file(root) is None
    assert len(FileIndex.of(root)) == 11


def test_a_mistake_in_the_reading_of_the_cache_is_no_damage(root, monkeypatch):
    FileIndex.of(root)

    def mistake(*args):
        raise TypeError("a mistake")

    monkeypatch.setattr(FileIndex, "_checked", mistake)
    with pytest.raises(TypeError, match="a mistake"):
        FileIndex.of(root)


def test_linked_folders_and_files_count(root, tmp_path):
    (root / "dog").symlink_to(plant(tmp_path / "elsewhere", {"dog": 2}) / "dog")
    (root / "ant" / "linked.png").symlink_to(root / "cat" / "0.png")
    found = names(FileIndex.of(root))
    assert {"dog/0.png", "dog/1.png", "ant/linked.png"} < set(found)


def test_hidden_files_do_not_count(root):
    (root / "ant" / "._0.png").write_bytes(b"notes of a file system")
    assert "ant/._0.png" not in names(FileIndex.of(root))


def test_no_file_is_opened(root):
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    assert len(Folder(root, Preprocess())) == 11


@pytest.mark.slow
def test_a_hundred_thousand_files_start_within_ten_seconds_of_work(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(1000):
        (tmp_path / f"x/n{k:08}").mkdir(parents=True)
        for i in range(100):
            os.close(os.open(tmp_path / f"x/n{k:08}/n{k:08}_{i}.JPEG", os.O_CREAT))
    age(tmp_path / "x")
    times = []
    for _ in range(2):
        start = time.process_time()
        assert len(Folder(tmp_path / "x", Preprocess())) == 100_000
        times.append(time.process_time() - start)
    assert times[0] < 10
    assert times[1] < times[0] / 2
