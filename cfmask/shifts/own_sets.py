"""Sets of one's own, by the import path of what makes them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from cfmask.data.any_dataset import Labelled
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.shift import Request, Shift
from cfmask.trust import find_callable

# Of image and label in the items of a data set that are mappings.
KEYS = ("image", "label")


def own_shifts(path: str, request: Request) -> list[Shift]:
    """The sets that a function or class of one's own makes.

    It is called with the request, or without anything if it takes no argument. What it gives is
    sets, one set, or a data set of images and labels (see `DatasetData`), which becomes one set of
    its name.

    Args:
        path: `my_module.my_sets`. Only what the user has named may be asked for here.
        request: for the maker.

    Raises:
        InputError: nothing there by this path; sets that are none.
    """
    maker = find_callable(path)
    made = maker(request) if _takes_one(maker) else maker()
    if isinstance(made, Shift):
        return [made]
    if isinstance(made, Sequence) and made and all(isinstance(one, Shift) for one in made):
        return list(made)
    if not hasattr(made, "__getitem__") or not hasattr(made, "__len__") or not len(made):
        raise InputError(
            f"Expected {path} to give a list of Shift or a data set of images and labels, but got "
            f"{made!r:.80}."
        )
    load = partial(Labelled, made, KEYS, len(request.class_names))
    return [Shift(path.rpartition(".")[2], load, note=f"made by {path}; {READING[False]}")]


def class_names_of(path: str) -> tuple[str, ...]:
    """Classes of sets of one's own: the attribute `class_names` of what makes them.

    Raises:
        InputError: it has none.
    """
    names = getattr(find_callable(path), "class_names", None)
    if not isinstance(names, list | tuple):
        raise InputError(
            f"Expected {path} to say its classes, for a model that brings none, but it has no "
            f"class_names; add {path.rpartition('.')[2]}.class_names = (…) to its module."
        )
    return tuple(map(str, names))


def _takes_one(maker: Any) -> bool:
    """Whether a callable needs an argument, or has one called request."""
    parameters = inspect.signature(maker).parameters
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind not in (2, 4)]
    return "request" in parameters or bool(needed)
