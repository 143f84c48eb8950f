"""Unknown classes: any images of what a classifier does not know, to be told from what it does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cfmask.data.any_dataset import Labelled, refuse_unsized, told_names
from cfmask.data.file_index import pictures_below
from cfmask.data.folders import Pictures
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.labels import class_numbers
from cfmask.shift import UNKNOWN, Request, Shift, Size, qualified
from cfmask.shifts.pictures import Contents
from cfmask.trust import find_callable, is_path
from cfmask.wordnet import synsets

FAMILY = "unknown"


def unknown_shifts(known: Sequence[Shift], request: Request) -> list[Shift]:
    """Sets, then those of the folders and import paths of `request.unknown`.

    The answer to an image of an unknown class is one of those that compete on the first set in
    distribution, so that scores of both are of the same classes.

    Args:
        known: sets that were found, unknown ones among them.
        request: whose `class_names` are the known ones.

    Raises:
        InputError: nothing there, or a class that is known.
    """
    titles = [Path(os.path.abspath(what)).name for what in request.unknown]
    made = []
    for what, title in zip(request.unknown, titles):
        one = _of_code(what, request) if _is_code(what) else _of_folder(Path(what), request)
        short = title if titles.count(title) == 1 else what.strip("/")
        made.append(replace(one, name=qualified(FAMILY, short)))
    inside = next((shift for shift in known if shift.in_distribution), None)
    classes = inside.classes if inside else None
    return [replace(s, classes=classes) if s.unknown else s for s in [*known, *made]]


def _is_code(what: str) -> bool:
    return is_path(what) and not Path(what).exists()


def _of_folder(folder: Path, request: Request) -> Shift:
    paths = pictures_below(folder)
    if not paths:
        raise InputError(f"Expected images of unknown classes in {folder}, but there are none.")
    inner = {part for path in paths for part in Path(path).relative_to(folder).parts[:-1]}
    refuse_known([*sorted(inner), folder.resolve().name], request.class_names, str(folder))
    samples = [(path, UNKNOWN) for path in paths]
    note = f"images of classes that the models do not have; {READING[False]}"
    load = partial(Pictures, as_stored=False)
    return Contents.of(samples, note, dataset=load, unknown=True)


def _of_code(path: str, request: Request) -> Shift:
    data = find_callable(path)()
    refuse_unsized(data, path)
    names = told_names(data) or []
    refuse_known(names, request.class_names, path)
    note = f"made by {path}: images of classes that the models do not have; {READING[False]}"
    load = partial(Unlabelled, data, ("image", "label"), 0)
    return Shift("", load, found=Size(len(data), 0), note=note, unknown=True)


def refuse_known(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse names of unknown classes among which is one that a classifier knows.

    Args:
        names: of folders or classes.
        known: classes of the classifier; those of ImageNet may be called by WordNet id too.
        where: origin of the names.

    Raises:
        InputError: a known one.
    """
    ids = synsets() if len(known) == len(synsets()) else ()
    several = list(dict.fromkeys(names))
    for classes in (known, ids):
        for name, number in zip(several, class_numbers(several, classes, where)):
            if number is not None:
                raise InputError(
                    f"Expected classes in {where} that the classifier does not know, but {name!r} "
                    "is one of its own; leave it out."
                )


class Unlabelled(Labelled):
    """The images of a data set as those of unknown classes, whatever their labels are."""

    def _class(self, label: Any, where: str) -> int:
        return UNKNOWN
