"""FileIndex: the pictures of class folders, listed without opening any, kept for large folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cfmask.decoding import ENDINGS
from cfmask.errors import InputError
from cfmask.files import whole_file

# From this number of pictures on a listing takes seconds, and more on a network disk.
LARGE = 20_000
# Seconds without a change after which a listing is kept: it is checked by the folders' times of
# change, which are too coarse to show a file that is copied at the same moment.
SETTLED = 60
# What NumPy and this file raise at a damaged index.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class FileIndex:
    """Pictures of a folder with one subfolder a class.

    Attributes:
        root: the folder.
        classes: names of the class folders, sorted.
        files: paths below `root`, bytes (N,), by class, folder and name.
        owners: int64 (N,), number of the class of each.
        folders: paths below `root` of all folders that were listed, and their times of change in
            nanoseconds.
        sound: True if a look at every file has found nothing wrong; see `cfmask.data.unreadable`.
    """

    root: Path
    classes: tuple[str, ...]
    files: npt.NDArray[np.bytes_]
    owners: npt.NDArray[np.int64]
    folders: dict[str, int]
    sound: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        """Path of a picture."""
        return os.path.join(self.root, os.fsdecode(bytes(self.files[index])))

    @classmethod
    def of(cls, root: Path, classes: Sequence[str] | None = None) -> FileIndex:
        """The index of a folder: kept from an earlier time if no folder has changed, or new.

        Args:
            root: the folder.
            classes: names of the class folders, sorted; None for all folders in it.

        Raises:
            InputError: no folder, no class folders, a class without pictures.
        """
        known = cls._kept(root)
        if known is not None and (classes is None or known.classes == tuple(classes)):
            return known
        return cls._listed(root, class_folders(root) if classes is None else classes)

    def keep(self) -> None:
        """Write the index of a large folder that has settled to the cache, if that can be."""
        settled = time.time() - max(self.folders.values()) / 1e9 > SETTLED
        place = cache_file(self.root)
        if len(self) < LARGE or not settled or place is None:
            return
        # A listing that cannot be kept is made anew.
        with contextlib.suppress(InputError), whole_file(place) as part, part.open("wb") as file:
            np.savez(
                file,
                classes=np.array([os.fsencode(name) for name in self.classes]),
                files=self.files,
                owners=self.owners,
                folders=np.array([os.fsencode(name) for name in self.folders]),
                times=np.array(list(self.folders.values()), dtype=np.int64),
                sound=np.array(self.sound),
            )

    @classmethod
    def _listed(cls, root: Path, names: Sequence[str]) -> FileIndex:
        folders = {"": os.stat(root).st_mtime_ns}
        found = [list(_pictures(str(root), name, folders)) for name in names]
        empty = [name for name, files in zip(names, found, strict=True) if not files]
        if empty:
            raise InputError(
                f"Expected images in every class folder of {root}, but some are empty: "
                f"{', '.join(empty[:8])}{', …' if len(empty) > 8 else ''}; fill or remove them."
            )
        files = np.array([os.fsencode(path) for paths in found for path in paths])
        owners = np.repeat(np.arange(len(names)), [len(paths) for paths in found])
        index = cls(root, tuple(names), files, owners, folders)
        index.keep()
        return index

    @classmethod
    def _kept(cls, root: Path) -> FileIndex | None:
        place = cache_file(root)
        if place is None or not place.is_file():
            return None
        try:
            with np.load(place, allow_pickle=False) as kept:
                return cls._checked(root, dict(kept))
        # The folder itself is there, to be listed anew.
        except _DAMAGED:
            return None

    @classmethod
    def _checked(cls, root: Path, kept: dict[str, Any]) -> FileIndex | None:
        """The index if all folders are as they were; None if not."""
        if any(kept[name].dtype.kind != "S" for name in ("folders", "classes", "files")):
            raise ValueError("other arrays")
        names = [os.fsdecode(bytes(name)) for name in kept["folders"]]
        folders = dict(zip(names, kept["times"].tolist(), strict=True))
        for name, changed in folders.items():
            if os.stat(os.path.join(root, name)).st_mtime_ns != changed:
                return None
        classes = tuple(os.fsdecode(bytes(name)) for name in kept["classes"])
        return cls(root, classes, kept["files"], kept["owners"], folders, bool(kept["sound"]))


def cache_folder() -> Path | None:
    """Where things are kept: below XDG_CACHE_HOME, which is `~/.cache` by default.

    None for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfmask"
    except RuntimeError:
        return None


def cache_file(root: Path) -> Path | None:
    """Where the index of a folder is kept; None for a user without a home."""
    folder = cache_folder()
    key = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return folder / f"index-{key}.npz" if folder else None


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count.

    Raises:
        InputError: no folder, none in it, one that cannot be listed, or a name that is no UTF-8.
    """
    names = sorted(name for name, is_folder in entries(root).items() if is_folder)
    if not names:
        raise InputError(
            f"Expected one folder a class with images in {root}, but it has no folder."
        )
    odd = [name for name in names if name.encode(errors="ignore").decode() != name]
    if odd:
        raise InputError(
            f"Expected names of classes in UTF-8, but {os.path.join(root, odd[0])} has none; "
            "rename the folder."
        )
    return names


def entries(place: str | Path) -> dict[str, bool]:
    """Names in a folder, hidden ones left out, and whether each is a folder or a link to one.

    The kind comes with the name: no file is asked for anything.

    Raises:
        InputError: no folder, one that may not be read, or a link in it that leads nowhere. A link
            that is called like an image is one, which cannot be read.
    """
    try:
        with os.scandir(place) as found:
            return {entry.name: _is_folder(entry) for entry in found if entry.name[0] != "."}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"Expected a folder of images, but {place} does not exist.") from error
    except OSError as error:
        raise InputError(f"Cannot list {place}: {error.strerror}. Mend or move it.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    is_image = entry.name.lower().endswith(ENDINGS)
    try:
        if entry.is_dir() or is_image or not entry.is_symlink():
            return entry.is_dir()
        # A class or a part of one may be behind it, so it is not passed over.
        os.stat(entry.path)
    except OSError as error:
        if is_image:
            return False
        raise InputError(
            f"Expected files and folders, but the link {entry.path} cannot be followed: "
            f"{error.strerror}. Mend or remove it."
        ) from error
    return False


def pictures_below(root: Path) -> list[str]:
    """Paths of all pictures in a folder and in those below it; hidden ones do not count."""
    return [os.path.join(root, below) for below in _pictures(str(root), "", {})]


def _pictures(root: str, name: str, folders: dict[str, int]) -> Iterator[str]:
    """Paths below root of the pictures of a folder, then of those in it; notes the folders.

    A folder to which several links lead is listed once, at the first of them.
    """
    seen: set[tuple[int, int]] = set()
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [(name, ())]
    while pending:
        below, above = pending.pop()
        place = os.path.join(root, below)
        kinds, facts = entries(place), os.stat(place)
        this = facts.st_dev, facts.st_ino
        if this in above:
            raise InputError(
                f"Expected folders that end, but {place} leads back to one above it; remove the "
                "link."
            )
        if this in seen:
            continue
        seen.add(this)
        folders[below] = facts.st_mtime_ns
        names = sorted(kinds)
        for found in names:
            if not kinds[found] and found.lower().endswith(ENDINGS):
                yield os.path.join(below, found)
        inner = [os.path.join(below, found) for found in names if kinds[found]]
        pending += [(path, (*above, this)) for path in reversed(inner)]
