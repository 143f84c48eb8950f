"""MetaShift's pickles to a list of images in contexts, read without executing anything."""

from __future__ import annotations

import csv
import io
import os
import pickle
import pickletools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmask.data.holdout import LISTS
from cfmask.decoding import ENDINGS
from cfmask.errors import InputError, listed
from cfmask.files import write_text

# What the pickles may name: containers of strings, which run no code of anyone's.
_NAMED = {
    ("collections", "defaultdict"): defaultdict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, list, dict, tuple)
    },
}
# What Python raises at bytes that are no pickle, or at one of operations on such containers that
# none of them has.
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
Subsets = dict[str, set[str]]


class _Plain(pickle.Unpickler):
    """An unpickler of containers, strings and numbers alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMED:
            raise InputError(f"it names {module}.{name}, and only containers are read")
        return _NAMED[module, name]


@dataclass(frozen=True)
class Converted:
    """What `convert` has written.

    Attributes:
        file: the list, a line for each image of each context.
        contexts: number of images by context.
        ambiguous: number of images left out because they are of several of the classes.
        absent: number of images left out because they are not there.
    """

    file: Path
    contexts: dict[str, int]
    ambiguous: int
    absent: int


def convert(
    source: Path,
    images: Path,
    classes: Sequence[str],
    out: Path,
    least: int = 25,
    allow_incomplete: bool = False,
) -> Converted:
    """Write the images of some classes of MetaShift as a list in contexts.

    Args:
        source: `full-candidate-subsets.pkl`, "class(context)" -> set of image numbers; or
            `imageID_to_group.pkl`, image number -> its "class(context)", which tells of images of
            training too: those that are not below `images` are left out.
        images: folder with `<number>.jpg`, at any depth, such as Visual Genome's, or the folder
            `val_out_of_domain` of the latter.
        classes: whose contexts are written. Images of several of them are left out, as by the
            authors for cats with dogs.
        out: folder for `metadata.csv`, which names the images where they lie: a set of
            `--shifts contexts` whose data root is the folder around it.
        least: contexts with fewer images are left out; 25 is the authors' number.
        allow_incomplete: leave out images that are not there.

    Source: Liang and Zou 2022 (arXiv 2202.06523) and its released code.

    Raises:
        InputError: a file that is no such pickle or holds more, a class without contexts, images
            that are not there, or a list that is.
    """
    subsets, partial = _subsets(source)
    of = {name: [key for key in subsets if _owner(key) == name] for name in classes}
    empty = [name for name, keys in of.items() if not keys]
    if empty or len(set(classes)) < len(classes) or not classes:
        known = sorted({_owner(key) for key in subsets})
        raise InputError(
            f"Expected classes of {source}, each once, but got {listed(empty or classes)}; it has "
            f"{listed(known)}."
        )
    file = out / LISTS[0]
    if file.exists():
        raise InputError(f"Expected a new folder for the list, but {file} is there; give another.")
    owners = Counter(
        k for keys in of.values() for k in set[str]().union(*(subsets[i] for i in keys))
    )
    wanted = {number for number, count in owners.items() if count == 1}
    places = _places(images)
    absent = sorted(wanted - places.keys())
    if len(absent) == len(wanted) or (absent and not (partial or allow_incomplete)):
        raise InputError(
            f"Expected the {len(wanted)} images of {listed(classes)} below {images}, but "
            f"{len(absent)} are not there, such as {listed(absent[:1])}.jpg; complete them, or "
            "give --allow_incomplete true."
        )
    here = {
        key: sorted(subsets[key] & wanted & places.keys()) for keys in of.values() for key in keys
    }
    kept = {key: numbers for key, numbers in sorted(here.items()) if len(numbers) >= max(1, least)}
    if not kept:
        raise InputError(
            f"Expected contexts of at least {least} images, but the largest has "
            f"{max(map(len, here.values()))}; give a smaller --least."
        )
    rows = [(places[k], _owner(key), key) for key, numbers in kept.items() for k in numbers]
    write_text(file, _table(out, rows))
    return Converted(
        file,
        {key: len(numbers) for key, numbers in kept.items()},
        len(owners) - len(wanted),
        len(absent),
    )


def _subsets(source: Path) -> tuple[Subsets, bool]:
    """Image numbers by "class(context)", and whether the file may tell of other images too."""
    try:
        content = _plain(source.read_bytes())
    except InputError as error:
        raise InputError(f"Refused {source}: {error}.") from error
    except OSError as error:
        raise InputError(f"Cannot read {source}: {error}.") from error
    pairs = list(_pairs(content))
    if not pairs:
        raise InputError(
            f"Expected {source} to hold image numbers by names such as cat(sofa), but got "
            f"{_seen(content)}; give full-candidate-subsets.pkl or imageID_to_group.pkl."
        )
    # Names of contexts are the keys of the one file, and the values of the other.
    by_image = not any("(" in key for key, _ in pairs)
    found: Subsets = defaultdict(set)
    for first, second in pairs:
        key, number = (second, first) if by_image else (first, second)
        if not re.fullmatch(r"[^()/\\]+\([^()/\\]+\)", key) or not re.fullmatch(r"[\w.-]+", number):
            raise InputError(
                f"Expected names such as cat(sofa) and numbers of images in {source}, but got "
                f"{key!r:.60} and {number!r:.60}."
            )
        found[key].add(number)
    return dict(found), by_image


def _plain(data: bytes) -> Any:
    try:
        for code, number, _ in pickletools.genops(data):
            # Python would make room for all numbers below.
            if code.name.endswith("PUT") and int(number or 0) > len(data):
                raise InputError(f"it numbers an object {number}, more than it can hold")
        return _Plain(io.BytesIO(data)).load()
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"it is no pickle of names and numbers alone ({error!r:.100})") from error


def _pairs(content: Any) -> Iterator[tuple[str, str]]:
    """Key and member of a dictionary of containers of strings; none if it is anything else."""
    several = (set, frozenset, list, tuple)
    plain = isinstance(content, dict) and all(
        isinstance(key, str)
        and isinstance(members, several)
        and all(isinstance(one, str) for one in members)
        for key, members in content.items()
    )
    if plain:
        yield from ((key, one) for key, members in content.items() for one in members)


def _seen(content: Any) -> str:
    size = f" of {len(content)}" if isinstance(content, (dict, set, list, tuple)) else ""
    return f"a {type(content).__name__}{size}"


def _owner(key: str) -> str:
    """The class in "class(context)"."""
    return key.partition("(")[0].strip()


def _places(images: Path) -> Mapping[str, Path]:
    """Path of each picture below a folder by its name without ending, of equal ones the first."""
    found: dict[str, Path] = {}
    for folder, inner, names in os.walk(images, followlinks=True):
        inner.sort()
        for name in sorted(names):
            if name.lower().endswith(ENDINGS):
                found.setdefault(Path(name).stem, Path(folder, name))
    return found


def _table(home: Path, rows: Sequence[tuple[Path, str, str]]) -> str:
    """The list as CSV; paths are relative, so that list and images can be moved together."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["path", "class", "group"])
    table.writerows([os.path.relpath(place, home), name, key] for place, name, key in rows)
    return stream.getvalue()
