"""Values of JSON as values of a type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from cfmask.typed_json import Misfit, Typed


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


class Named(TypedDict, total=False):
    name: str
    points: list[Point]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[float, ...], (1, 2, 3)),
        ([1, "a"], Sequence[int | str], [1, "a"]),
        ({"a": None}, Mapping[str, int | None], {"a": None}),
        ("fast", Literal["fast", "pil"], "fast"),
        ([1.5, 2.5], tuple[int, int] | tuple[float, float], (1.5, 2.5)),
        ({"x": 1}, Point, Point(1)),
        ({"points": [{"x": 1, "y": 2}]}, Named, {"points": [Point(1, 2)]}),
        ([{"any": [1]}], Any, [{"any": [1]}]),
    ],
)
def test_a_value_becomes_one_of_its_type(value, kind, expected):
    assert Typed()(value, kind, "it") == expected


@pytest.mark.parametrize(
    ("value", "kind", "line"),
    [
        (True, int, "it is True"),
        (True, float, "it is True"),
        (math.nan, float, "it is nan"),
        (2**63, int, f"it is {2**63}"),
        (1, Literal[True], "it is 1"),
        ("x", list[int], "it is 'x'"),
        ([1, 2, 3], tuple[int, int], "it is a list of 3"),
        ([1, "x"], list[int], r"it\[1\] is 'x'"),
        ({"a": {"b": 1}}, dict[str, dict[str, str]], r"it\['a'\]\['b'\] is 1"),
        ({"y": 1}, Point, "it lacks 'x'"),
        ({"x": 1, "z": 1}, Point, "it adds 'z'"),
        ({"points": [{"x": "1"}]}, Named, r"it.points\[0\].x is '1'"),
        ({}, int | str, "it is an object of 0"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(value, kind, line):
    with pytest.raises(Misfit, match=f"^{line}"):
        Typed()(value, kind, "it")


def test_a_value_of_any_type_may_not_be_nested_without_end():
    value: Any = 0
    for _ in range(30):
        value = [value]
    with pytest.raises(Misfit, match="nested deeper than 20 levels"):
        Typed()(value, Any, "it")


def test_a_loose_dictionary_may_hold_more():
    assert Typed(loose=(Named,))({"name": "a", "other": 1}, Named, "it")["other"] == 1


def test_classes_are_made_by_the_function_that_is_given():
    typed = Typed(make=lambda value, kind: (kind, value))
    assert typed("Name", Point, "it") == (Point, "Name")
    assert typed([{"x": 1}], list[Point | None], "it") == [(Point, {"x": 1})]
    with pytest.raises(Misfit):
        typed(5, Point, "it")
