"""Effective robustness: how far a shift accuracy lies above what the reference accuracy predicts.

The prediction is a line through transformed accuracies of models with standard training: built-in
lines through ImageNet models, lines of a CSV file, or a line through the models of the report.

Source: Taori et al. 2020 (arXiv 2007.00644), section 3.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, correlation, linear_regression

from cfmask.errors import InputError
from cfmask.evaluation.figures import Fit, Row, Transform

TRANSFORMS: tuple[Transform, ...] = ("logit", "probit")

_SOURCE = (
    "85 models trained in the standard way of the ImageNet testbed (Taori et al. 2020, its "
    "published top-1 table); line fitted by cfmask's authors"
)
_NOT_LINEAR = (
    "not linear: the images of A were chosen to fool a ResNet-50, and the testbed fits it in two "
    "pieces"
)
_BETA = "of ObjectNet 1.0-beta"

# Shift and reference, then logit slope, intercept, R2, probit slope, intercept, and a note.
_LINES: list[tuple[str, str, float, float, float, float, float, str]] = [
    ("v2", "val", 0.923, -0.498, 0.996, 0.962, -0.325, ""),
    ("r", "val", 0.912, -1.600, 0.877, 0.942, -1.003, ""),
    ("r", "val on R classes", 0.637, -2.108, 0.889, 0.772, -1.421, ""),
    ("sketch", "val", 1.071, -2.370, 0.869, 1.044, -1.426, ""),
    ("objectnet", "val", 1.199, -2.024, 0.941, 1.221, -1.255, _BETA),
    ("objectnet", "val on ObjectNet classes", 0.981, -1.928, 0.953, 1.019, -1.205, _BETA),
    ("a", "val", 3.052, -6.292, 0.773, 2.478, -3.267, _NOT_LINEAR),
    ("a", "val on A classes", 1.990, -7.632, 0.828, 1.888, -4.160, _NOT_LINEAR),
]


def _built_in() -> Iterator[Fit]:
    for shift, reference, a, b, r2, c, d, note in _LINES:
        names = f"imagenet/{shift}", f"imagenet/{reference}"
        # The range of reference accuracies is known for the whole of val only.
        facts = (*((0.565, 0.847) if reference == "val" else (None, None)), _SOURCE, note)
        yield Fit(*names, "logit", a, b, r2, *facts)
        yield Fit(*names, "probit", c, d, None, *facts)


BUILT_IN = list(_built_in())


def transformed(accuracy: float, transform: Transform) -> float:
    """Logit or probit of an accuracy, which is clipped to [1e-6, 1 - 1e-6]."""
    inside = min(max(accuracy, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside)) if transform == "logit" else NormalDist().inv_cdf(inside)


def predicted(fit: Fit, reference: float) -> float:
    """Accuracy in [0, 1] that a line gives at a reference accuracy in [0, 1]."""
    value = fit.slope * transformed(reference, fit.transform) + fit.intercept
    # A user's line may be steep, and exp overflows beyond 700.
    value = min(max(value, -700.0), 700.0)
    return 1 / (1 + math.exp(-value)) if fit.transform == "logit" else NormalDist().cdf(value)


CHOICES = ("builtin", "models", "none")


def check_fit(choice: str, models: int, sets: Sequence[str], reference: str | None) -> None:
    """Refuse what `fits_of` would refuse of a report, before time is spent.

    Raises:
        InputError: neither a choice nor a readable file; too few models for a line.
    """
    if choice in CHOICES:
        if choice == "models" and (models < 3 or reference is None):
            raise _too_few(models, reference)
    elif Path(choice).is_file():
        read_fits(Path(choice), reference, sets)
    else:
        raise InputError(
            f"Expected a fit among {', '.join(CHOICES)}, or a CSV file, but got {choice}."
        )


def _too_few(models: int, reference: str | None) -> InputError:
    return InputError(
        "Expected at least 3 models with different accuracies on a reference set to fit a line "
        f"through, but got {models} on {reference}; evaluate more, or use another --fit."
    )


def fits_of(choice: str, rows: Sequence[Row], reference: str | None) -> list[Fit]:
    """The lines for effective robustness, at most one for each set and transform.

    Of lines with several references it is the last one listed: in the built-in table the clean
    images of the set's own classes, if they were evaluated. There are none, with a warning, through
    too few different models.

    Args:
        choice: `builtin`, `models` for lines through the models of the report, `none`, or a CSV
            file.
        rows: accuracies of single sets.
        reference: name of the report's reference set.

    Raises:
        InputError: a file that cannot be read.
    """
    if choice == "none":
        return []
    accuracies: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        accuracies[row.model][row.shift] = row.value
    sets = list(dict.fromkeys(row.shift for row in rows))
    if choice == "builtin":
        fits = BUILT_IN
    elif choice == "models":
        try:
            fits = lines_through(accuracies, reference, "the models of this report")
        except InputError as error:
            # Known only after the evaluation, whose report is not to be lost.
            warnings.warn(f"No line through these models: {error}", stacklevel=2)
            return []
    else:
        fits = read_fits(Path(choice), reference, sets)
    there = [fit for fit in fits if {fit.shift, fit.reference} <= set(sets)]
    return list({(fit.shift, fit.transform): fit for fit in there}.values())


def lines_through(
    accuracies: Mapping[str, Mapping[str, float]], reference: str | None, source: str
) -> list[Fit]:
    """Least-squares lines of every set on the reference set, by either transform.

    Args:
        accuracies: model -> set -> accuracy in [0, 1].
        reference: name of the set that predicts the others.
        source: of the accuracies, for the reader.

    Raises:
        InputError: no reference set; fewer than 3 models, or models that are all equally good.
    """
    both = [own for own in accuracies.values() if reference in own]
    if reference is None or len({own[reference] for own in both}) < 3:
        raise _too_few(len(both), reference)
    shifts = [name for name in both[0] if name != reference]
    return [
        _line(shift, reference, transform, [(own[reference], own[shift]) for own in both], source)
        for shift in shifts
        if all(shift in own for own in both)
        for transform in TRANSFORMS
    ]


def _line(
    shift: str,
    reference: str,
    transform: Transform,
    pairs: Sequence[tuple[float, float]],
    source: str,
) -> Fit:
    xs, ys = ([transformed(value, transform) for value in column] for column in zip(*pairs))
    slope, intercept = linear_regression(xs, ys)
    # A set on which all models are equally good has no variance to explain.
    r2 = correlation(xs, ys) ** 2 if len(set(ys)) > 1 else None
    ends = [value for value, _ in pairs]
    note = f"through {len(pairs)} models"
    return Fit(
        shift, reference, transform, slope, intercept, r2, min(ends), max(ends), source, note
    )


def read_fits(path: Path, reference: str | None, sets: Sequence[str] = ()) -> list[Fit]:
    """Lines of a CSV file.

    Either one line a row, in columns shift, reference, transform, slope, intercept and, if known,
    r2, low, high, source, note; or one model a row, in a column `model` and one column a set with
    accuracies as fractions, through which lines are fitted. Sets have their qualified names.

    Args:
        path: the file.
        reference: name of the set that predicts the others, for lines through models.
        sets: names of the sets that the lines are for.

    Raises:
        InputError: no such file, other columns, cells that are no numbers, accuracies outside
            [0, 1], or the name of one of the sets without its family.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            records = list(csv.DictReader(file, strict=True, restval=""))
        columns = list(records[0]) if records else []
        if {"shift", "reference", "transform", "slope", "intercept"} <= set(columns):
            fits = [_read(record) for record in records]
            _check_families([name for f in fits for name in (f.shift, f.reference)], sets)
            return fits
        if "model" in columns:
            _check_families(columns, sets)
            return lines_through(_accuracies(records), reference, str(path))
    except InputError:
        raise
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"Cannot read fits from {path}: {error}") from error
    raise InputError(
        f"Expected the columns shift, reference, transform, slope, intercept, or model and one a "
        f"set, in {path}, but got {', '.join(map(str, columns)) or 'none'}."
    )


def _check_families(names: Iterable[str], sets: Sequence[str]) -> None:
    for name in names:
        for whole in () if name in sets else sets:
            if whole.partition("/")[2] == name:
                raise ValueError(f"expected sets with their family, {whole} for {name}")


def _accuracies(records: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Accuracies in [0, 1] by model and set of the lines of a file; empty cells are left out."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        model, *others = record["model"], *(pair for pair in record.items() if pair[0] != "model")
        if model in found:
            raise ValueError(f"expected each model once, but got {model} twice")
        found[model] = {name: float(value) for name, value in others if value}
        for name, value in found[model].items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"expected accuracies in [0, 1], but {model} has {value} on {name}"
                )
    return found


def _read(record: Mapping[str, str]) -> Fit:
    transform = next((t for t in TRANSFORMS if t == record["transform"]), None)
    if transform is None:
        raise ValueError(f"transform {record['transform']!r} is neither logit nor probit")
    slope, intercept = _number(record, "slope"), _number(record, "intercept")
    r2, low, high = (_number(record, k) if record.get(k) else None for k in ("r2", "low", "high"))
    texts = record.get("source") or "", record.get("note") or ""
    names = record["shift"], record["reference"]
    return Fit(*names, transform, slope, intercept, r2, low, high, *texts)


def _number(record: Mapping[str, str], column: str) -> float:
    value = float(record[column])
    if not math.isfinite(value):
        raise ValueError(f"{column} is {value}, which is no finite number")
    return value


def robustness_rows(rows: Iterable[Row], fits: Sequence[Fit]) -> list[Row]:
    """Effective robustness of every model by every line, as differences of accuracy in [-1, 1].

    The interval is by the delta method from those of both accuracies; the line is taken as exact.
    The note gives the reference, the line's own note, and whether the model lies outside the range
    of the line's models.

    Args:
        rows: accuracies of single sets, with intervals.
        fits: lines whose sets are among them.
    """
    own = {(row.model, row.shift): row for row in rows}
    return [
        _residual(own[model, fit.shift], own[model, fit.reference], fit)
        for model in dict.fromkeys(model for model, _ in own)
        for fit in fits
    ]


def _residual(row: Row, reference: Row, fit: Fit) -> Row:
    value = row.value - predicted(fit, reference.value)
    reach = math.hypot(_half(row), _slope_at(fit, reference.value) * _half(reference))
    notes = [f"against {fit.reference}"]
    if fit.low is None or fit.high is None:
        notes.append("range of the line's models not known")
    elif not fit.low <= reference.value <= fit.high:
        notes.append(f"EXTRAPOLATED beyond {100 * fit.low:.1f}–{100 * fit.high:.1f} %")
    notes += [fit.note] if fit.note else []
    metric = f"effective_robustness_{fit.transform}"
    ends = (value - reach, value + reach)
    return Row(row.model, row.shift, metric, value, None, None, *ends, "; ".join(notes))


def _half(row: Row) -> float:
    return 0.0 if row.low is None or row.high is None else (row.high - row.low) / 2


def _slope_at(fit: Fit, reference: float) -> float:
    """Change of the prediction with the reference accuracy, by a central difference."""
    step = 1e-4
    low, high = max(0.0, reference - step), min(1.0, reference + step)
    return (predicted(fit, high) - predicted(fit, low)) / (high - low)
