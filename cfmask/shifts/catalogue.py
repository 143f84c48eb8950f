"""Catalogue: every family of evaluation sets by name.

An entry of `SHIFTS` makes the sets of one family. A new family is one file and one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from cfmask.errors import InputError, unknown
from cfmask.shift import Request, Shift, is_asked_for
from cfmask.shifts.digits_world import digits_shifts
from cfmask.shifts.named_folders import folder_shifts
from cfmask.shifts.published import PUBLISHED, published_shifts

SHIFTS: dict[str, Callable[[Request], list[Shift]]] = {
    "digits": digits_shifts,
    "folders": folder_shifts,
    **{family: partial(published_shifts, family) for family in PUBLISHED},
}


def find_shifts(names: Sequence[str], request: Request) -> list[Shift]:
    """Sets by name: a family (`digits`) or some of it (`digits/sketch`), each set once.

    Raises:
        InputError: an unknown name (the nearest are named), sets whose images are not there, or
            sets of two families that have the same name.
    """
    found: dict[str, tuple[str, Shift]] = {}
    for name in names:
        family, _, single = name.partition("/")
        if family not in SHIFTS:
            raise unknown("shift", name, SHIFTS)
        shifts = SHIFTS[family](replace(request, only=single))
        chosen = [shift for shift in shifts if is_asked_for(single, shift.name, family)]
        if not chosen:
            raise unknown("shift", name, [f"{family}/{shift.name}" for shift in shifts])
        for shift in chosen:
            owner, _ = found.setdefault(shift.name, (family, shift))
            if owner != family:
                raise InputError(
                    f"Expected sets of different names, but {owner} and {family} both have a set "
                    f"{shift.name!r}; evaluate them apart."
                )
    return [shift for _, shift in found.values()]
