"""Labels: names of classes, spelled loosely -> numbers of the classes of a head."""

from __future__ import annotations

from collections.abc import Sequence

from cfmask.errors import InputError, unknown


def class_numbers(names: Sequence[str], classes: Sequence[str], where: str) -> list[int | None]:
    """The number of the class of each name; None for a name of no class.

    An exact match wins. Otherwise capitals, and underscores for spaces, make no difference if only
    one class fits and it fits no other name.

    Args:
        names: each once.
        classes: in the order of their numbers.
        where: origin of the names, for the message.

    Raises:
        InputError: a name that fits two classes, or two names that fit one class.
    """
    loosely: dict[str, list[int]] = {}
    for k, name in enumerate(classes):
        loosely.setdefault(_plain(name), []).append(k)
    found: list[int | None] = []
    for name in names:
        alike = loosely.get(_plain(name), [])
        exact = [k for k in alike if classes[k] == name]
        if len(exact or alike) > 1:
            _refuse(where, [repr(name)], [repr(classes[k]) for k in exact or alike])
        found += exact or alike or [None]
    for k in {k for k in found if k is not None and found.count(k) > 1}:
        _refuse(where, [repr(n) for n, own in zip(names, found) if own == k], [repr(classes[k])])
    return found


def numbers_of(values: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """The class of each value of a column: its name, see `class_numbers`, or its number.

    Raises:
        InputError: neither of both; see `class_numbers`.
    """
    names = list(dict.fromkeys(values))
    found = dict(zip(names, class_numbers(names, classes, where)))
    for name, k in found.items():
        if k is None:
            if not (name.isdecimal() and len(name) < 10 and int(name) < len(classes)):
                raise InputError(
                    f"Expected classes among {', '.join(classes[:8])} or numbers below "
                    f"{len(classes)} in {where}, but got {name!r:.60}."
                )
            found[name] = int(name)
    return [k for value in values if (k := found[value]) is not None]


def labels_for(labels: Sequence[str], images: int, classes: Sequence[str]) -> list[int]:
    """Numbers of the classes of pictures.

    Args:
        labels: name of a class, one for all pictures or one each.
        images: number of pictures.
        classes: in the order of their numbers.

    Raises:
        InputError: another number of names, or one that is no class.
    """
    if len(labels) not in (1, images):
        raise InputError(
            f"Expected one label for all or one for each of {images} pictures, but got "
            f"{len(labels)}."
        )
    wanted = list(dict.fromkeys(labels))
    found = dict(zip(wanted, class_numbers(wanted, classes, "--label")))
    for label, number in found.items():
        if number is None:
            raise unknown("class", label, classes)
    return [found[label] or 0 for label in [*labels] * (images // len(labels))]


def _refuse(where: str, names: Sequence[str], classes: Sequence[str]) -> None:
    raise InputError(
        f"Expected names in {where} that tell the classes apart, but {' and '.join(names)} may be "
        f"{' or '.join(classes)}; spell them as the classes."
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()
