"""FileIndex: the pictures of class folders, listed without opening any, kept for large folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torchvision.datasets.folder import IMG_EXTENSIONS

from cfmask.errors import InputError

ENDINGS = (*IMG_EXTENSIONS, ".gif", ".avif")
# From this number of pictures on a listing takes seconds, and more on a network disk.
LARGE = 20_000
# Seconds after which nothing is being copied into a folder any more. A listing that is kept is
# known by the folders' times of change, which tell nothing within their own grain.
SETTLED = 60


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
    def of(cls, root: Path) -> FileIndex:
        """The index of a folder: kept from an earlier time if no folder has changed, or new.

        Raises:
            InputError: no folder, no class folders, a class without pictures.
        """
        known = cls._kept(root)
        return known if known is not None else cls._listed(root)

    def keep(self) -> None:
        """Write the index of a large folder that has settled to the cache, if that can be."""
        settled = time.time() - max(self.folders.values()) / 1e9 > SETTLED
        if len(self) < LARGE or not settled:
            return
        place = cache_file(self.root)
        part = place.with_name(f"{place.name}.{os.getpid()}.npz")
        # A listing that cannot be kept is made anew.
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                part,
                classes=np.array([os.fsencode(name) for name in self.classes]),
                files=self.files,
                owners=self.owners,
                folders=np.array([os.fsencode(name) for name in self.folders]),
                times=np.array(list(self.folders.values()), dtype=np.int64),
                sound=np.array(self.sound),
            )
            part.replace(place)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)

    @classmethod
    def _listed(cls, root: Path) -> FileIndex:
        names = class_folders(root)
        folders = {"": os.stat(root).st_mtime_ns}
        found = [list(_pictures(str(root), name, folders, ())) for name in names]
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
        try:
            with np.load(cache_file(root), allow_pickle=False) as kept:
                return cls._checked(root, dict(kept))
        # Whatever is wrong with the file of a cache, the folder itself is there.
        except Exception:
            return None

    @classmethod
    def _checked(cls, root: Path, kept: dict[str, Any]) -> FileIndex | None:
        """The index if all folders are as they were; None if not."""
        names = [os.fsdecode(bytes(name)) for name in kept["folders"]]
        folders = dict(zip(names, kept["times"].tolist(), strict=True))
        for name, changed in folders.items():
            if os.stat(os.path.join(root, name)).st_mtime_ns != changed:
                return None
        classes = tuple(os.fsdecode(bytes(name)) for name in kept["classes"])
        return cls(root, classes, kept["files"], kept["owners"], folders, bool(kept["sound"]))


def cache_file(root: Path) -> Path:
    """Where the index of a folder is kept: below XDG_CACHE_HOME, which is `~/.cache` by default."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return home / "cfmask" / f"index-{key}.npz"


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count."""
    if not root.is_dir():
        raise InputError(f"Expected a folder of images, but {root} does not exist.")
    names = sorted(p.name for p in os.scandir(root) if p.is_dir() and p.name[0] != ".")
    if not names:
        raise InputError(
            f"Expected one folder a class with images in {root}, but it has no folder."
        )
    return names


def _pictures(
    root: str, below: str, folders: dict[str, int], above: tuple[str, ...]
) -> Iterator[str]:
    """Paths below root of the pictures of a folder, then of those in it; notes the folders."""
    place = os.path.join(root, below)
    real = os.path.realpath(place)
    if real in above:
        raise InputError(f"Expected folders without end, but {place} leads back to {real}.")
    folders[below] = os.stat(place).st_mtime_ns
    with os.scandir(place) as found:
        # The kind comes with the name: no file is asked for anything.
        kinds = {entry.name: entry.is_dir() for entry in found if entry.name[0] != "."}
    for name in sorted(kinds):
        if not kinds[name] and name.lower().endswith(ENDINGS):
            yield os.path.join(below, name)
    for name in sorted(kinds):
        if kinds[name]:
            yield from _pictures(root, os.path.join(below, name), folders, (*above, real))
