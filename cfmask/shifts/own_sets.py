"""Your own sets, by the import path of their maker."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cfmask.data.any_dataset import Labelled, refuse_unsized, told_names
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.labels import class_numbers
from cfmask.shift import Request, Shift
from cfmask.trust import find_callable


def own_shifts(path: str, request: Request) -> list[Shift]:
    """The sets that a function or class of your own makes.

    It is called with the request if it takes an argument, and returns sets, one set, or a data set
    of images and labels (see `DatasetData`), which becomes one set of the maker's name.

    `path` (`my_module.my_sets`) is imported, so it must come from the user.

    Raises:
        InputError: nothing there by this path, or what is no set.
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
    shift = dataset_shift(path.rpartition(".")[2], made, request.class_names)
    return [replace(shift, note=f"made by {path}; {shift.note}")]


def dataset_shift(
    name: str,
    data: Any,
    class_names: Sequence[str],
    in_distribution: bool = False,
    image_key: str = "image",
    label_key: str = "label",
) -> Shift:
    """A set of any data set with a length: your own class, torchvision's, Hugging Face's.

    If the data set names its classes and the classifier has them all, labels go by name; else they
    are numbers of the classifier's classes. Items are as for `DatasetData`.

    Args:
        name: of the set in reports.
        data: images and labels.
        class_names: of the classifier, in the order of its logits.
        in_distribution: True for the reference set.
        image_key: of the image in items that are mappings.
        label_key: of the label in such items.

    Raises:
        InputError: no such data set, or a class that the classifier has under another number while
            it lacks others.

    Examples:
        >>> data = [(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 1)]
        >>> shift = cfmask.dataset_shift("shades", data, ["dark", "light"])
        >>> image, label = shift.load(cfmask.Preprocess((8, 8)))[1]
        >>> int(image.max()), label
        (255, 1)
    """
    refuse_unsized(data, type(data).__name__)
    names = told_names(data, label_key) or []
    found = class_numbers(names, class_names, f"the data set {name}")
    by_name = bool(names) and None not in found
    moved = [(n, k, of) for k, (n, of) in enumerate(zip(names, found)) if of not in (None, k)]
    if moved and not by_name:
        other, k, of = moved[0]
        raise InputError(
            f"Expected the classes of {name} among those of the classifier or in their order, but "
            f"{other!r} is class {k} of it and class {of} of the classifier, which lacks "
            f"{names[found.index(None)]!r}; leave the images of others out."
        )
    numbers = tuple(k for k in found if k is not None) if by_name else None
    keys = image_key, label_key
    load = partial(Labelled, data, keys, len(class_names), numbers=numbers)
    told = "labels by name" if by_name else "label = number of the class"
    return Shift(name, load, in_distribution, note=f"{told}; {READING[False]}")


def class_names_of(path: str) -> tuple[str, ...]:
    """Classes of your own sets: the maker's attribute `class_names`, or what its data set names.

    Raises:
        InputError: it has none.
    """
    maker = find_callable(path)
    names = getattr(maker, "class_names", None)
    if names is None and not _takes_one(maker):
        names = told_names(maker())
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
