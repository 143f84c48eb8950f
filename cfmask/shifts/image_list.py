"""Image lists: a CSV file with the path, class, split and group of each image, as in Waterbirds."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cfmask.data.folders import Pictures
from cfmask.data.holdout import LISTS
from cfmask.decoding import READING
from cfmask.errors import InputError
from cfmask.labels import numbers_of
from cfmask.shifts.pictures import Contents

# Names of columns; the first that is there is read.
PATHS = ("img_filename", "file_path", "filename", "path")
LABELS = ("y", "label", "class", "object")
# Columns whose values are the groups.
GROUPS = ("group", "domain", "region")
# A column that makes groups together with the class (Sagawa et al., 2020).
WITH_CLASS = "place"
SPLITS = {"0": "train", "1": "val", "2": "test", "valid": "val", "validation": "val"}


def list_file(folder: Path) -> Path | None:
    """The list in a folder; None if it has none."""
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def image_list(file: Path, classes: Sequence[str], split: str, as_stored: bool = False) -> Contents:
    """Read a list of images.

    Args:
        file: the list; its paths are relative to its folder, or to `images/` in that.
        classes: names in the order of the labels; the list has names or numbers.
        split: which one to read; a list without splits is read whole.
        as_stored: leave EXIF rotation and transparency alone.

    Raises:
        InputError: a damaged list or one without the columns, a class that is not among `classes`,
            or an image that is not there.
    """
    rows = listed_rows(file)
    columns = list(rows[0])
    path, label = _column(PATHS, columns, file), _column(LABELS, columns, file)
    trained = [row for row in rows if _split(row) == "train"]
    rows = [row for row in rows if _split(row) in (split, "")]
    labels = numbers_of([row[label].strip() for row in rows], classes, str(file))
    samples = list(zip(_found([row[path] for row in rows], file), labels))
    by = next((column for column in (*GROUPS, WITH_CLASS) if column in columns), "")
    groups = [_group(row, by, classes[k]) for row, k in zip(rows, labels)] if by else []
    names = tuple(sorted(set(groups)))
    trained = trained if by else []
    before = numbers_of([row[label].strip() for row in trained], classes, str(file))
    training = Counter(_group(row, by, classes[k]) for row, k in zip(trained, before))
    note = f"labels by {label!r} of {file.name}" + (f", groups by {by!r}" if by else "")
    return Contents.of(
        samples,
        f"{note}; {READING[as_stored]}",
        dataset=partial(Pictures, as_stored=as_stored),
        groups=tuple(map(names.index, groups)) if names else None,
        group_names=names,
        training_shares=tuple(training[name] / len(trained) for name in names if trained),
    )


def listed_classes(file: Path) -> list[str]:
    """Names of the classes in a list of images, sorted.

    Raises:
        InputError: a damaged list, or one that has numbers for names.
    """
    rows = listed_rows(file)
    label = _column(LABELS, list(rows[0]), file)
    names = sorted({row[label].strip() for row in rows})
    if all(name.isdecimal() for name in names):
        raise InputError(
            f"Expected names of classes in the column {label!r} of {file}, because this classifier "
            "brings none, but got numbers; write names, or evaluate a classifier that has them."
        )
    return names


def listed_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its header; every row has all columns.

    Raises:
        InputError: it cannot be read, has no rows, or a row of another length.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Cannot read {file}: {error}.") from error
    if not rows:
        raise InputError(f"Expected a line for each image in {file}, but it has none.")
    short = [k for k, row in enumerate(rows, 2) if None in row.values() or None in row]
    if short:
        raise InputError(
            f"Expected as many columns in line {short[0]} of {file} as in its first line, but got "
            "another number; mend that line."
        )
    return rows


def _found(paths: Sequence[str], file: Path) -> list[str]:
    """Full paths of the images, all of which must exist."""
    homes = (file.parent, file.parent / "images")
    home = next((home for home in homes if paths and (home / paths[0]).is_file()), homes[0])
    whole = [home / path for path in paths]
    absent = [path for path in whole if not path.is_file()]
    if absent:
        raise InputError(
            f"Expected the {len(whole)} images of {file}, but {len(absent)} are not there, such as "
            f"{absent[0]}."
        )
    return list(map(str, whole))


def _column(names: Sequence[str], columns: Sequence[str], file: Path) -> str:
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise InputError(
            f"Expected a column {', '.join(names[:-1])} or {names[-1]} in {file}, but got "
            f"{', '.join(columns)}."
        )
    return found


def _split(row: Mapping[str, str]) -> str:
    """The split of a row; empty if the list has none."""
    value = (row.get("split") or "").strip().lower()
    return SPLITS.get(value, value)


def _group(row: Mapping[str, str], column: str, label: str) -> str:
    value = f"{column} {row[column]}" if row[column].isdecimal() else row[column]
    return f"{label}, {value}" if column == WITH_CLASS else value
