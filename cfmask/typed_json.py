"""Typed JSON: values of JSON or YAML as values of a type, or in words what is wrong with them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

# Levels of what may be of any type.
DEPTH = 20


class Misfit(ValueError):
    """A value is not of its type; the text goes on after "but"."""


@dataclass(frozen=True)
class Typed:
    """Makes values of a type from those of JSON: dataclasses, tuples and what `make` makes.

    Attributes:
        make: value and class -> an object of any class; None makes dataclasses alone.
        loose: typed dictionaries that may hold more than what they name.
    """

    make: Callable[[Any, type], Any] | None = None
    loose: tuple[Any, ...] = ()

    def __call__(self, value: Any, kind: Any, where: str) -> Any:
        """A value as one of a type.

        Args:
            value: of JSON.
            kind: the type, with what it holds: `list[int]`, `str | None`, a typed dictionary.
            where: the value stands, for messages.

        Raises:
            Misfit: another type, a number that is not finite or huge, or too many levels.
        """
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any:
            _check_depth(value, DEPTH, where)
        elif origin in (Union, UnionType):
            kinds = [one for one in inner if self._may_be(value, one)]
            for one in kinds[:-1]:
                with contextlib.suppress(Misfit):
                    return self(value, one, where)
            if kinds:
                return self(value, kinds[-1], where)
            raise Misfit(f"{where} is {in_words(value)}")
        elif not self._may_be(value, kind):
            raise Misfit(f"{where} is {in_words(value)}")
        elif origin is tuple:
            kinds = [*inner[:1] * len(value)] if inner[-1] is ... else [*inner]
            if len(kinds) != len(value):
                raise Misfit(f"{where} is {in_words(value)}")
            return tuple(self(one, each, where) for one, each in zip(value, kinds))
        elif origin not in (None, Literal) and isinstance(value, list):
            return [self(one, inner[0], f"{where}[{k}]") for k, one in enumerate(value)]
        elif origin not in (None, Literal):
            return {k: self(v, inner[1], f"{where}[{k!r:.50}]") for k, v in value.items()}
        elif is_typeddict(kind) or (self.make is None and is_dataclass(kind)):
            return self._record(value, kind, where)
        elif self.make and isinstance(kind, type) and kind not in _SCALARS:
            return self.make(value, kind)
        return value

    def _record(self, value: dict[str, Any], kind: Any, where: str) -> Any:
        """A dataclass or a typed dictionary of a dictionary."""
        known = get_type_hints(kind)
        if is_typeddict(kind):
            needed, made = kind.__required_keys__, dict
        else:
            needed = {
                field.name
                for field in fields(kind)
                if field.default is field.default_factory is MISSING
            }
            made = kind
        lacking = [name for name in known if name in needed and name not in value]
        more = [] if kind in self.loose else [name for name in value if name not in known]
        if lacking or more:
            wrong = f"{'lacks' if lacking else 'adds'} {(lacking or more)[0]!r:.50}"
            raise Misfit(f"{where} {wrong}")
        return made(**{k: self(v, known.get(k, Any), f"{where}.{k}") for k, v in value.items()})

    def _may_be(self, value: Any, kind: Any) -> bool:
        """Whether a value may be of a type; what it holds is not looked at."""
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            return any(value == one and type(value) is type(one) for one in inner)
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if origin is not None:
            held = Mapping if isinstance(value, dict) else Sequence
            return isinstance(value, dict | list) and issubclass(origin, held)
        if is_typeddict(kind) or (self.make is None and is_dataclass(kind)):
            return isinstance(value, dict)
        return kind is Any or not isinstance(kind, type) or isinstance(value, dict | str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SCALARS: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    NoneType: lambda value: value is None,
    int: lambda value: _is_number(value) and isinstance(value, int) and abs(value) < 2**63,
    float: lambda value: _is_number(value) and abs(value) < 1e300 and math.isfinite(value),
}


def _check_depth(value: Any, left: int, where: str) -> None:
    if left == 0:
        raise Misfit(f"{where} is nested deeper than {DEPTH} levels")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _check_depth(one, left - 1, where)


def in_words(value: Any) -> str:
    """A value of JSON in words."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return f"{value!r:.50}"
