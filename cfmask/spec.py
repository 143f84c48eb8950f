"""Spec: the description that rebuilds a classifier without its weights, as plain JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cfmask.errors import InputError
from cfmask.heads import HEAD_ORIGINS, HeadOrigin
from cfmask.images import Preprocess

# Largest side of an image and number of features that a file may name.
LARGEST = 16_384
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Spec:
    """What rebuilds a classifier without its weights.

    Attributes:
        model: the encoder's name, for messages and reports.
        class_names: K names, in the order of the logits.
        preprocess: picture -> uint8 (3, H, W) of the size that the encoder takes.
        mean: of the pixels in [0, 1], by channel; subtracted inside of the classifier.
        std: of the pixels, by channel; divided by.
        head: kind of the head, a key of `cfmask.heads.HEADS`.
        width: D, the number of features.
        head_from: where the head's weights come from, a key of `cfmask.heads.HEAD_ORIGINS`; None
            for what the kind of the head says.
        options: further settings of the classifier's class, by name, as JSON has them.
        class_path: import path of the class; `Classifier` fills it in.
    """

    model: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    head: str = "linear"
    width: int = 0
    head_from: HeadOrigin | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    class_path: str = ""

    def __post_init__(self) -> None:
        for name in ("class_names", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        taken = sorted(set(self.options) & {*OWN, "head_shape", "family"})
        if taken:
            raise InputError(f"Expected other names in the options of a spec than {taken[0]!r}.")

    def plain(self) -> dict[str, Any]:
        """The spec as a dict of strings, numbers and lists, as a file's header has it."""
        origin = {} if self.head_from is None else {"head_from": self.head_from}
        return {
            **self.options,
            **origin,
            "class_path": self.class_path,
            "model": self.model,
            "class_names": list(self.class_names),
            "preprocess": self.preprocess.spec(),
            "mean": list(self.mean),
            "std": list(self.std),
            "head": self.head,
            "head_shape": [len(self.class_names), self.width],
        }

    @classmethod
    def of(cls, plain: Any) -> Spec:
        """The spec that a file's header holds, also one of version 0.1.

        Args:
            plain: as `plain` gives it.

        Raises:
            InputError: not such a dict; the first thing that is wrong with it is named.
        """
        if not isinstance(plain, dict):
            raise InputError(
                f"Expected a classifier's spec by name, but got {type(plain).__name__}."
            )
        rest = dict(plain)
        # Version 0.1 had the class's bare name.
        path = {"class_path": rest.pop("class_path", rest.pop("family", None))}
        names = _taken(rest, "class_names", "a list of names", are_names)
        kinds = f"one of {', '.join(HEAD_ORIGINS)}"
        shape = _taken(
            rest,
            "head_shape",
            f"[{len(names)}, width]",
            lambda v: _is_size(v) and v[0] == len(names),
        )
        return cls(
            model=_taken(rest, "model", "a text", _is_text),
            class_names=tuple(names),
            preprocess=_preprocess(rest),
            mean=tuple(_taken(rest, "mean", "three numbers", _are_three)),
            std=tuple(
                _taken(rest, "std", "three numbers above 0", lambda v: _are_three(v) and min(v) > 0)
            ),
            head=_taken(rest, "head", "a text", _is_text),
            width=shape[1],
            head_from=_taken(rest, "head_from", kinds, lambda v: v is None or v in [*HEAD_ORIGINS]),
            class_path=_taken(path, "class_path", "a text", _is_text),
            options=rest,
        )


def _preprocess(values: dict[str, Any]) -> Preprocess:
    given = dict(_taken(values, "preprocess", "settings by name", lambda v: isinstance(v, dict)))
    size = _taken(given, "size", "[H, W] in pixels", _is_size)
    crop = _taken(given, "crop_pct", "a share above 0", lambda v: _is_number(v) and v > 0)
    kinds = f"one of {', '.join(INTERPOLATIONS)}"
    kind = _taken(given, "interpolation", kinds, lambda v: _is_text(v) and v in INTERPOLATIONS)
    return Preprocess((size[0], size[1]), crop, kind)


def _taken(values: dict[str, Any], name: str, kind: str, fits: Callable[[Any], bool]) -> Any:
    """A value removed from a dict, if it is of the kind."""
    value = values.pop(name, None)
    if not fits(value):
        text = ascii(value)
        raise InputError(
            f"Expected {kind} as {name} of a classifier, but got "
            f"{text if len(text) < 80 else text[:77] + '...'}."
        )
    return value


def _is_text(value: Any) -> bool:
    # A lone surrogate, which JSON can hold, cannot be printed or written.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def are_names(value: Any) -> bool:
    """Whether a value is a list of at least one text that can be printed."""
    return isinstance(value, list) and len(value) > 0 and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    # Also not NaN; a float of 32 bits holds it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_size(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    return pair and all(type(side) is int and 0 <= side <= LARGEST for side in value)


OWN = {each.name for each in fields(Spec)}
