"""Known views: those that an evaluation shows by name. A new one is a file and its entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cfmask.errors import InputError, unknown
from cfmask.trust import find_named, is_own, is_path
from cfmask.views.structure import Structure
from cfmask.views.translation import Translation
from cfmask.views.view import View

# Made without a number or, for `name/4`, with one.
VIEWS: dict[str, Callable[..., View]] = {"translation": Translation, "structure": Structure}


def views_of(names: Sequence[str]) -> dict[str, View]:
    """Views by name, each once.

    Args:
        names: each a key of `VIEWS`, with the number that it takes after a stroke (`translation/4`
            moves crops by 4 pixels), or the import path of a `View` or of a class of them that
            needs no arguments. Paths are imported, so they must come from the user.

    Raises:
        InputError: an unknown name (the nearest are named), a number that it does not take, or
            something else at an import path.

    Examples:
        >>> views_of(["translation", "structure/3"])["structure/3"].places
        range(2, 4)
    """
    return {name: _view(name) for name in names}


def _view(name: str) -> View:
    kind, stroke, number = name.partition("/")
    if kind in VIEWS and ((number.isascii() and number.isdecimal()) or not stroke):
        return VIEWS[kind](int(number)) if stroke else VIEWS[kind]()
    if kind in VIEWS:
        raise InputError(f"Expected a whole number after {kind}/, but got {name}.")
    if not is_path(name):
        raise unknown("view", name, VIEWS)
    found = find_named(name)
    view = found() if isinstance(found, type) and issubclass(found, View) else found
    if not isinstance(view, View):
        raise InputError(f"Expected {name} to be a View, but got {found!r:.60}.")
    return view


def key_parts(views: Mapping[str, View]) -> list[str] | None:
    """What the answers to views depend on, beside the model and the set; None of one's own code."""
    own = all(is_own(type(view).__module__) for view in views.values())
    names = [f"{name} {view.margin} {list(view.columns)}" for name, view in views.items()]
    return names if own else None
