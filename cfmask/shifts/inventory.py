"""Inventory: which published sets lie under a folder, and whether they are complete and sorted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from cfmask.data.unreadable import complaints
from cfmask.errors import InputError, at_least, listed, unknown
from cfmask.images import Preprocess
from cfmask.shift import Size, qualified
from cfmask.shifts.imagenet_val import devkit_labels
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import Contents, Samples
from cfmask.shifts.published import PUBLISHED, is_asked_for
from cfmask.wordnet import numbers, real_labels

# Least share of images whose folder is among their ReaL labels: with fewer, they were sorted by a
# wrong list. At random one in a thousand agrees.
AGREEMENT = 0.7
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclass(frozen=True)
class SetCheck:
    """What was found of one set.

    Attributes:
        name: as `--shifts` takes it.
        title: as its authors call it.
        path: its folder; None if it is not there.
        places: the folders that were looked for.
        found: number of images and classes; None if they could not be counted.
        expected: the published size; None if none is published.
        problems: what is wrong, one line each.
        unreadable: paths of the images that cannot be decoded; empty unless they were decoded.
        source: where to get it.
    """

    name: str
    title: str
    path: Path | None
    places: tuple[str, ...]
    found: Size | None
    expected: Size | None
    problems: tuple[str, ...]
    unreadable: tuple[str, ...]
    source: str

    @property
    def ok(self) -> bool:
        """True for a set that is there with nothing wrong."""
        return self.path is not None and not self.problems and not self.unreadable


def check_sets(
    root: Path,
    names: Sequence[str] = (),
    decode: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> list[SetCheck]:
    """Look for the published sets under a folder, and for problems of those that are there.

    Args:
        root: the data root.
        names: families (`imagenet`) or sets (`imagenet/v2`); all if empty.
        decode: decode every image, with the set's own rules, and list those that fail.
        workers: processes that decode.
        progress: show a bar.

    Returns:
        A check for each set, but one for a whole collection (ImageNet-C). Sets that are made of
        another set's images are left out unless they are asked for.

    Raises:
        InputError: no such folder, or an unknown name.
    """
    at_least(0, workers, "workers")
    if not root.is_dir():
        raise InputError(f"Expected data_root to be a folder with image sets, but got {root}.")
    checks = []
    for family, name, origin in _wanted(names):
        contents, check = _look(_asked(family, name), origin, root)
        if decode and contents is not None:
            broken = _unreadable(contents, check.name, workers, progress)
            check = replace(check, unreadable=tuple(broken))
        checks.append((family, origin, check))
    return _by_collection(checks)


def _wanted(names: Sequence[str]) -> list[tuple[str, str, Origin]]:
    """Family, name and origin of each set that is asked for."""
    every = [
        (family, name, origin)
        for family, origins in PUBLISHED.items()
        for name, origin in origins.items()
    ]
    if not names:
        return [of for of in every if not of[2].made_of]
    chosen = []
    for asked in names:
        family, _, single = asked.partition("/")
        own = [of for of in every if of[0] == family and is_asked_for(single, of[1], family)]
        if not own:
            raise unknown("set", asked, [*PUBLISHED, *(_asked(of[0], of[1]) for of in every)])
        # Sets that are made of val come with their family only if it has no others.
        chosen += [of for of in own if single or not of[2].made_of] or own
    return list(dict.fromkeys(chosen))


def _asked(family: str, name: str) -> str:
    """What `--shifts` takes for a set."""
    return family if name == family else qualified(family, name)


def _look(name: str, origin: Origin, root: Path) -> tuple[Contents | None, SetCheck]:
    """Contents of a set, None if it is absent or cannot be listed, and its check by file names."""
    path, contents = origin.place(root), None
    problems: list[str] = []
    if path is not None:
        try:
            contents = origin.read(path, root)
            problems += _problems(contents, origin, path, root)
        except InputError as error:
            problems.append(str(error))
    found = contents.found if contents is not None else None
    facts = (path, origin.places, found, origin.expected, tuple(problems), (), origin.source)
    return contents, SetCheck(name, origin.title, *facts)


def _by_collection(checks: Sequence[tuple[str, Origin, SetCheck]]) -> list[SetCheck]:
    """The checks, those of one collection merged; of its optional sets only those that are there.

    A family of which nothing is there is merged too, but not ImageNet's, whose sets come from
    different places.
    """
    there = {family for family, _, check in checks if check.path is not None}
    alone: dict[str, list[SetCheck]] = {}
    for family, origin, check in checks:
        together = origin.part_of or (family not in there and family != "imagenet")
        if not (origin.part_of and origin.on_request and check.path is None):
            alone.setdefault(family if together else check.name, []).append(check)
    return [_together(name, parts) for name, parts in alone.items()]


def _together(name: str, parts: Sequence[SetCheck]) -> SetCheck:
    if len(parts) == 1:
        return parts[0]
    there = [part for part in parts if part.path is not None]
    absent = [part.name.split("/")[-1] for part in parts if part.path is None]
    problems = [f"{part.name}: {line}" for part in there for line in part.problems]
    if there and absent:
        problems.insert(0, f"sets missing: {_some(absent)}")
    return replace(
        parts[0],
        name=name,
        title=name,
        path=there[0].path if there else None,
        found=_sum(part.found for part in there),
        expected=_sum(part.expected for part in parts),
        problems=tuple(problems),
        unreadable=tuple(path for part in parts for path in part.unreadable),
    )


def _sum(sizes: Iterable[Size | None]) -> Size | None:
    """Images of all sets together; the number of classes is the largest."""
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    return Size(sum(size.images for size in known), max(size.classes for size in known))


def _problems(contents: Contents, origin: Origin, path: Path, root: Path) -> Iterable[str]:
    """What is wrong with a set, as far as names and file sizes tell."""
    if contents.complaint:
        yield contents.complaint
    yield from _miscounted(contents, origin)
    if contents.accepts is None:
        yield from _misplaced(contents.samples, path, root)
    sizes = {image: _bytes(image) for image, _ in contents.samples}
    for kind, size in (("empty files", 0), ("files that cannot be opened", None)):
        if found := [image for image in sizes if sizes[image] == size]:
            yield f"{kind}: {_some(found)}"


def _bytes(path: str) -> int | None:
    """Size of a file; None for a link that leads nowhere and the like."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def _miscounted(contents: Contents, origin: Origin) -> Iterable[str]:
    """Too many or too few images; empty classes; classes of another number of images."""
    surplus = contents.found.images - origin.expected.images if origin.expected else 0
    if surplus:
        yield f"images {'too many' if surplus > 0 else 'missing'}: {abs(surplus)}"
    counts = Counter(label for _, label in contents.samples)
    absent = [name for name, label in contents.labels.items() if not counts[label]]
    if absent:
        yield f"classes without an image: {_some(absent)}"
    uneven = [
        f"{name} has {counts[label]}"
        for name, label in contents.labels.items()
        if origin.each and counts[label] not in (0, origin.each)
    ]
    if uneven:
        yield f"classes with another number of images than {origin.each}: {_some(uneven)}"


def _misplaced(samples: Samples, path: Path, root: Path) -> Iterable[str]:
    """Images in the folder of another class, as far as the names of the files tell."""
    strays = [image for image, label in samples if _stray(image, label)]
    if strays:
        yield f"images in the folder of another class, by their names: {_some(strays)}"
    names = [(_VAL_NAME.match(Path(image).name), image, label) for image, label in samples]
    numbered = [(int(name[1]) - 1, image, label) for name, image, label in names if name]
    truth = devkit_labels(path, root) if numbered else None
    if truth is not None:
        wrong = [image for i, image, label in numbered if truth[i : i + 1] != [label]]
        if wrong:
            yield f"images in the folder of another class, by the devkit: {_some(wrong)}"
    elif numbered:
        yield from _against_real_labels([(i, label) for i, _, label in numbered])


def _against_real_labels(numbered: Sequence[tuple[int, int]]) -> Iterable[str]:
    """A problem if the folders agree too seldom with the ReaL labels of the images."""
    real = dict(enumerate(real_labels()))
    agree = [label in real[i] for i, label in numbered if real.get(i)]
    if agree and sum(agree) < AGREEMENT * len(agree):
        yield (
            f"mis-sorted: only {sum(agree)} of {len(agree)} images lie in a folder that agrees "
            "with their ReaL labels; sort them again by the labels of the devkit"
        )


def _stray(image: str, label: int) -> bool:
    """True for a file whose name begins with the WordNet id of another class than its folder's."""
    match = re.match(r"n\d{8}(?=_)", Path(image).name)
    return bool(match) and numbers().get(match[0] if match else "", label) != label


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    return f"{len(names)} ({listed(names, 3)})"


def _unreadable(contents: Contents, name: str, workers: int, progress: bool) -> list[str]:
    """Paths of the images that cannot be decoded by the set's own rules."""
    # A set that is read as stored refuses images of another size too.
    look: Any = contents.load(Preprocess())
    what = f"Decoding {name}"
    found = complaints(len(look), look.__getitem__, workers, what, progress)
    return [path for (path, _), wrong in zip(contents.samples, found, strict=True) if wrong]


def check_table(checks: Sequence[SetCheck]) -> Table:
    """The sets that are there, as a table for the terminal."""
    heads = ("set", "images found / expected", "classes", "folder", "wrong")
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for check in checks:
        if check.path is not None:
            sizes = (
                f"{getattr(check.found, key, 0) or '?'} / {getattr(check.expected, key, 0) or '?'}"
                for key in ("images", "classes")
            )
            broken = len(check.unreadable)
            lines = [f"images that cannot be decoded: {broken}"] if broken else []
            wrong = "\n".join([*check.problems, *lines]) or "nothing"
            table.add_row(check.name, *sizes, str(check.path), wrong)
    return table


def absent_lines(checks: Sequence[SetCheck]) -> list[str]:
    """For each set that is not there, what was looked for and where to get it."""
    return [
        f"{check.name}: looked for {listed(check.places, 6)}; get it from {check.source}"
        for check in checks
        if check.path is None
    ]
