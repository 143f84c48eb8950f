"""Blame: tell errors of bad input from bugs in the user's own code."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from types import CodeType

from cfmask.errors import InputError

# Where code lies that is not the user's own.
_PLACES = (*map(sysconfig.get_path, ("stdlib", "platstdlib")), str(Path(__file__).parents[1]))
_LIBRARIES = ("site-packages", "dist-packages")


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError among an error and its causes, if there is one."""
    return next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)


def users_bug(error: BaseException | None) -> BaseException | None:
    """The error that was raised in the user's own code, or below it; None if there is none.

    Args:
        error: as caught.
    """
    if input_error(error):
        return None
    found = [cause for cause in _causes(error) if any(map(_is_users, _codes(cause)))]
    return found[-1] if found else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, by `raise ... from`."""
    while error is not None:
        yield error
        error = error.__cause__


def _codes(error: BaseException) -> Iterator[CodeType]:
    """Code of an error's traceback, outermost first, without the frame that caught it."""
    trace = error.__traceback__
    return (frame.f_code for frame, _ in walk_tb(trace and trace.tb_next))


def _is_users(code: CodeType) -> bool:
    """Whether code is neither of this package nor of an installed library."""
    path = Path(code.co_filename)
    # Generated code (dataclasses) and notebooks have no file, compiled code has a relative one.
    if not path.is_absolute():
        return path.name.startswith(("<stdin", "<ipython"))
    own = any(path.is_relative_to(place) for place in _PLACES)
    return not own and not set(_LIBRARIES) & set(path.parts)
