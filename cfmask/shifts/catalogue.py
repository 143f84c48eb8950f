"""Catalogue: every family of evaluation sets by name.

An entry of `SHIFTS` makes the sets of one family; a new family is one file and one entry. Sets of
your own need none: their import path is their family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from cfmask.digits import WORLDS
from cfmask.errors import unknown
from cfmask.shift import Request, Shift, qualified
from cfmask.shifts.cns import cns_shifts
from cfmask.shifts.contexts import context_shifts, urbancars_shifts
from cfmask.shifts.corrupted import corrupted_shifts
from cfmask.shifts.digits_world import digits_shifts
from cfmask.shifts.named_folders import folder_shifts
from cfmask.shifts.own_sets import own_shifts
from cfmask.shifts.published import PUBLISHED, is_asked_for, published_shifts
from cfmask.shifts.ssb import ssb_shifts
from cfmask.shifts.unknown import unknown_shifts
from cfmask.trust import is_path

SHIFTS: dict[str, Callable[[Request], list[Shift]]] = {
    **{world: partial(digits_shifts, world=world) for world in WORLDS},
    "folders": folder_shifts,
    "cns": cns_shifts,
    "ssb": ssb_shifts,
    "contexts": context_shifts,
    "urbancars": urbancars_shifts,
    **{family: partial(published_shifts, family) for family in PUBLISHED},
}


def find_shifts(names: Sequence[str], request: Request) -> list[Shift]:
    """Sets by name: a family (`digits`) or part of it (`digits/sketch`), each set once.

    The import path of a maker of your own sets (`my_module.my_sets`) is a family too; see
    `own_shifts`. The sets returned have qualified names (`family/name`). Those of
    `request.corrupt` and `request.unknown` come last.

    Raises:
        InputError: an unknown name (the nearest are named), or sets whose images are not there.

    Examples:
        >>> from cfmask import digits
        >>> request = cfmask.Request(class_names=digits.CLASS_NAMES, images=20)
        >>> [shift.name for shift in cfmask.find_shifts(["digits/id", "digits/sketch"], request)]
        ['digits/id', 'digits/sketch']
    """
    found: dict[str, Shift] = {}
    for name in names:
        family, _, single = name.partition("/")
        maker = SHIFTS.get(family) or (partial(own_shifts, family) if is_path(family) else None)
        if maker is None:
            raise unknown("shift", name, SHIFTS)
        shifts = maker(replace(request, only=single))
        chosen = [shift for shift in shifts if is_asked_for(single, shift.name, family)]
        if not chosen:
            raise unknown("shift", name, [qualified(family, shift.name) for shift in shifts])
        for shift in chosen:
            whole = qualified(family, shift.name)
            found.setdefault(whole, replace(shift, name=whole))
    return unknown_shifts(corrupted_shifts([*found.values()], request), request)
