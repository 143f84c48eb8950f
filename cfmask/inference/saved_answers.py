"""SavedAnswers: a model that is known only by its logits or predictions, in a file.

Letters: N images of a set, K classes, C classes that compete on a set.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers, LabelRule
from cfmask.inference.predictions import parquet
from cfmask.inference.readable import Readable
from cfmask.labels import numbers_of
from cfmask.shift import Shift
from cfmask.shifts.image_list import listed_rows

ENDINGS = (".npz", ".parquet", ".csv")
# What NumPy, zipfile and zlib raise at damaged or malicious archives.
BROKEN = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Rows:
    """A table with a line for each image.

    Attributes:
        paths: of the images.
        sets: name of each image's set; None if the table does not say.
        predicted: class of each, by name or number; None for logits.
        logits: float (lines, C); None for predictions.
        classes: numbers of the classes of the logits, if the file gives them.
    """

    paths: list[str]
    sets: list[str] | None = None
    predicted: list[str] | None = None
    logits: Tensor | None = None
    classes: list[int] | None = None


class SavedAnswers:
    """A model that cannot be loaded here, by its logits or predictions in a file.

    Three kinds of file are read: `.npz` with an array of logits (N, K) for each set, in the order
    of its images, under its name in reports (any name if there is one array and one set);
    `.parquet` with columns `path` and `logits` or `prediction`, as evaluations write it; `.csv`
    with `path` and `prediction`. In tables a column `set` may name the set. A path is that of the
    image, or its end from any folder on; a prediction is the name of a class or its number. Labels
    are those of the sets.

    Args:
        path: the file.
        class_names: K names, in the order of the logits.

    Raises:
        InputError: no such file, or another kind of file.

    Examples:
        >>> import numpy
        >>> numpy.savez("logits.npz", [[0.9, 0.1], [0.2, 0.8]])
        >>> data = [(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 1)]
        >>> shifts = [cfmask.dataset_shift("shades", data, ["dark", "light"])]
        >>> theirs = cfmask.SavedAnswers("logits.npz", ["dark", "light"])
        >>> cfmask.evaluate(theirs, shifts).value("logits.npz", "shades")
        1.0
    """

    def __init__(self, path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.path = Path(path)
        self.class_names = tuple(class_names)
        if self.path.suffix not in ENDINGS or not self.path.is_file():
            raise InputError(
                f"Expected a file of logits or predictions ({', '.join(ENDINGS)}), but got "
                f"{self.path}{'' if self.path.is_file() else ', which is not there'}."
            )
        logits = isinstance(self.content, Mapping) or self.content.logits is not None
        self.name = f"{'logits' if logits else 'predictions'} in {self.path.name}"

    @cached_property
    def content(self) -> Mapping[str, Any] | Rows:
        """Arrays by name, or the lines of a table."""
        if self.path.suffix == ".npz":
            return _arrays(self.path)
        rows = _of_parquet(self.path) if self.path.suffix == ".parquet" else _of_csv(self.path)
        if not rows.paths:
            raise InputError(f"Expected a line for each image in {self.path}, but it has none.")
        return rows

    def answers(
        self, shifts: Sequence[Shift], sets: Mapping[str, Readable], keep_logits: bool
    ) -> dict[str, Answers]:
        """Answers to all images of sets, by their names.

        Args:
            shifts: the sets.
            sets: their images by name, of which only labels and paths are read.
            keep_logits: leave the logits with the answers.

        Raises:
            InputError: a set without answers, other numbers of images or classes, an image without
                a line or with two, a line of no image, a class that does not compete.
        """
        if isinstance(self.content, Rows):
            return self._of_rows(self.content, shifts, sets, keep_logits)
        found = {}
        for shift in shifts:
            logits = self._array(self.content, shift, len(shifts))
            found[shift.name] = self._judged(shift, sets[shift.name], logits, None, keep_logits)
        return found

    def _array(self, arrays: Mapping[str, Any], shift: Shift, sets: int) -> Tensor:
        only = next(iter(arrays)) if len(arrays) == 1 and sets == 1 else shift.name
        if only not in arrays:
            raise InputError(
                f"Expected an array {shift.name} in {self.path}, but it has "
                f"{', '.join(list(arrays)[:8]) or 'none'}."
            )
        return _floats(arrays[only], f"{only} of {self.path}")

    def _of_rows(
        self,
        rows: Rows,
        shifts: Sequence[Shift],
        sets: Mapping[str, Readable],
        keep_logits: bool,
    ) -> dict[str, Answers]:
        if rows.sets is not None:
            lost = [shift.name for shift in shifts if shift.name not in set(rows.sets)]
            if lost:
                raise InputError(f"Expected lines of the set {lost[0]} in {self.path}, got none.")
        meant: dict[int, str] = {}
        found = {}
        for shift in shifts:
            data = sets[shift.name]
            lines = _lines(rows, shift.name, data, self.path, meant)
            if rows.predicted is not None:
                values = [rows.predicted[k] for k in lines]
                wanted = torch.tensor(numbers_of(values, self.class_names, str(self.path)))
                rule = self._rule(shift)
                found[shift.name] = rule.judge_predictions(wanted, data.labels())
            else:
                assert rows.logits is not None
                logits, own = rows.logits[lines], rows.classes
                found[shift.name] = self._judged(shift, data, logits, own, keep_logits)
        lone = set(range(len(rows.paths))) - set(meant) if rows.sets is None else ()
        if lone:
            raise _of_no_image(rows.paths[min(lone)], self.path, sets[shifts[0].name])
        return found

    def _rule(self, shift: Shift) -> LabelRule:
        return LabelRule(len(self.class_names), shift.classes, shift.accepts, shift.name)

    def _judged(
        self,
        shift: Shift,
        data: Readable,
        logits: Tensor,
        classes: list[int] | None,
        keep_logits: bool,
    ) -> Answers:
        """Answers by logits (N, K), or by those (N, C) of the classes that compete alone."""
        rule, heads = self._rule(shift), len(self.class_names)
        among = list(range(heads)) if classes is None else classes
        if len(among) < heads and among != rule.classes.tolist():
            raise InputError(
                f"Expected logits of the {len(rule.classes)} classes that compete on {shift.name} "
                f"in {self.path}, but got those of {len(among)} others."
            )
        if tuple(logits.shape) != (len(data), len(among)):
            raise InputError(
                f"Expected logits ({len(data)}, {len(among)}), images by classes, of {shift.name} "
                f"in {self.path}, but got {tuple(logits.shape)}."
            )
        if not logits.isfinite().all():
            raise InputError(f"Expected finite logits of {shift.name} in {self.path}.")
        if len(among) == heads:
            return rule.judge(logits, data.labels(), keep_logits=keep_logits)
        # The zeros of the other classes only affect the fields that are None here.
        whole = torch.zeros(len(logits), heads)
        whole[:, among] = logits
        answers = rule.judge(whole, data.labels(), keep_logits=keep_logits)
        return replace(answers, unrestricted=None, max_logit=None)


def _arrays(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except BROKEN as error:
        raise InputError(f"Cannot read arrays of numbers in {path}: {error}.") from error


def _floats(values: Any, where: str) -> Tensor:
    if values.dtype.kind not in "fiu":
        raise InputError(f"Expected numbers in {where}, but got {values.dtype}.")
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))


def _of_csv(path: Path) -> Rows:
    rows = listed_rows(path)
    _check_columns(list(rows[0]), ("prediction",), path)
    sets = [row["set"].strip() for row in rows] if "set" in rows[0] else None
    predicted = [row["prediction"].strip() for row in rows]
    return Rows([row["path"].strip() for row in rows], sets, predicted)


def _of_parquet(path: Path) -> Rows:
    pa, pq = parquet()
    try:
        table = pq.read_table(path)
        names = list(table.column_names)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"Cannot read the table {path}: {error}.") from error
    _check_columns(names, ("logits", "prediction"), path)
    try:
        paths, sets, predicted = (
            [str(value) for value in table[name].to_pylist()] if name in names else None
            for name in ("path", "set", "prediction")
        )
    except UnicodeDecodeError as error:
        raise InputError(f"Expected texts in UTF-8 in {path}, but got others.") from error
    assert paths is not None
    if "logits" not in names:
        return Rows(paths, sets, predicted)
    logits = _floats(_matrix(table["logits"].combine_chunks(), path), f"logits of {path}")
    told = (table.schema.metadata or {}).get(b"classes")
    return Rows(paths, sets, None, logits, None if told is None else _classes(told, path))


def _matrix(column: Any, path: Path) -> Any:
    """Lists of one length as an array (lines, C)."""
    pa, _ = parquet()
    kinds = pa.types
    if not any(check(column.type) for check in (kinds.is_list, kinds.is_fixed_size_list)):
        raise InputError(f"Expected lists of logits in {path}, but got {column.type}.")
    values = column.flatten().to_numpy(zero_copy_only=False)
    width = len(values) // max(1, len(column))
    if column.null_count or {len(row) for row in column} - {width}:
        raise InputError(f"Expected as many logits in every line of {path}, but got other numbers.")
    return values.reshape(len(column), width)


def _classes(text: bytes, path: Path) -> list[int]:
    """Numbers of the classes of the logits, as evaluations write them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or any(type(k) is not int for k in found):
        raise InputError(f"Expected numbers of classes in the metadata of {path}.")
    return found


def _check_columns(names: Sequence[str], either: Sequence[str], path: Path) -> None:
    if "path" not in names or not set(either) & set(names):
        raise InputError(
            f"Expected columns path and {' or '.join(either)} in {path}, but got "
            f"{', '.join(map(str, names[:8]))}."
        )


def _lines(rows: Rows, name: str, data: Readable, file: Path, meant: dict[int, str]) -> list[int]:
    """Number of the line of each image of a set, in the order of the set.

    Args:
        rows: of the table.
        name: of the set.
        data: its images.
        file: the table, for messages.
        meant: full path of each line's image, to which those of this set are added.
    """
    own = [k for k in range(len(rows.paths)) if rows.sets is None or rows.sets[k] == name]
    images = _Ends(data)
    lines: dict[int, int] = {}
    for k in own:
        index = images.find(rows.paths[k], file)
        if index is None and rows.sets is not None:
            raise _of_no_image(rows.paths[k], file, data)
        if index in lines:
            raise InputError(
                f"Expected one line for each image in {file}, but got two for {rows.paths[k]}."
            )
        if index is not None:
            lines[index] = k
            whole = str(Path(*images.parts[index])) if data.files is not None else f"{name} {index}"
            if meant.setdefault(k, whole) != whole:
                raise _of_several(rows.paths[k], 2, file)
    absent = [i for i in range(len(data)) if i not in lines]
    if absent:
        raise InputError(
            f"Expected a line for each of the {len(data)} images of {name} in {file}, but "
            f"{len(absent)} have none, such as {data.paths()[absent[0]]}."
        )
    return [lines[i] for i in range(len(data))]


def _of_no_image(path: str, file: Path, data: Readable) -> InputError:
    return InputError(
        f"Expected paths of the images of the sets in {file}, such as {data.paths()[0]} or its end "
        f"from any folder on, but got {path}."
    )


def _of_several(path: str, count: int, file: Path) -> InputError:
    return InputError(
        f"Expected paths in {file} that tell the images apart, but {path} is the end of {count}; "
        "write more of the folders before it, or a column set."
    )


class _Ends:
    """Images of a set by their paths, or by the end of these from any folder on."""

    def __init__(self, data: Readable) -> None:
        paths = data.paths()
        whole = [os.path.abspath(path) for path in paths] if data.files is not None else paths
        self.parts = [Path(path).parts for path in whole]
        self.by_length: dict[int, dict[tuple[str, ...], list[int]]] = {}

    def find(self, path: str, file: Path) -> int | None:
        """Number of the image; None if there is none.

        Raises:
            InputError: several images have this end.
        """
        parts = Path(path.replace("\\", "/")).parts
        known = self.by_length.setdefault(len(parts), {})
        if not known:
            for k, own in enumerate(self.parts):
                known.setdefault(own[-len(parts) :] if parts else (), []).append(k)
        found = known.get(parts, [])
        if len(found) > 1:
            raise _of_several(path, len(found), file)
        return found[0] if found else None
