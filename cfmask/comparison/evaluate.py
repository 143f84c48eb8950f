"""Evaluate: classifiers on shift sets -> a report of exact counts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.figures import HARMONIC, MEAN, Curve, Row
from cfmask.evaluation.fronts import Bits, Line, fronts_of
from cfmask.evaluation.ladders import check_ladders, ladder_figures
from cfmask.evaluation.measures import (
    Table,
    combination_rows,
    counts_of,
    differences,
    rows_of,
)
from cfmask.evaluation.metrics import Counts, Judged, Metric
from cfmask.evaluation.protocol import protocol_of, run_facts
from cfmask.evaluation.robustness import check_fit, fits_of, robustness_rows
from cfmask.inference.any_model import AnyModel, Function, Transform, Whole, named
from cfmask.inference.inference import Inference, Model, classes_of, described, facts_of
from cfmask.inference.saved_answers import SavedAnswers
from cfmask.inference.settings import Reading, Settings
from cfmask.inference.wise import Blend
from cfmask.reporting.report import ShiftReport
from cfmask.shift import Shift
from cfmask.shifts.combinations import COMBINATIONS

Given = Classifier | Blend | SavedAnswers | Function | tuple[Function, Transform]


def evaluate(
    models: Given | Mapping[str, Given],
    shifts: Sequence[Shift],
    batch_size: int = 250,
    store: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    starts: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    class_names: Sequence[str] = (),
    **reading: Unpack[Reading],
) -> ShiftReport:
    """All measures of each model on each set, every image counted once.

    Where several processes have been joined (`cfmask.processes`), each reads its own
    part of every set, and each gets the whole report. Answers of modules and functions that are no
    classifiers are not kept in `store`: no key can stand for their code.

    Args:
        models: by the name of their row, or one alone: classifiers, blends of two, or any module or
            function that gives logits (B, K) for a batch of what `transform` makes. Modules are put
            in eval mode for the time. A pair (module, transform) has a transform of its own; of
            `SavedAnswers` no image is read.
            Paired comparisons are with the first model, and with `starts`.
        shifts: the sets, from `find_shifts`.
        batch_size: images at a time; all models see the batch, so that images are read once.
        store: folder in which the answers to each set are kept, so that an interrupted evaluation
            goes on where it was; None keeps none.
        predictions: folder for a Parquet file of each model on each set; None writes none.
        starts: row of a tuned model -> row of the model that it was tuned from; they are compared,
            as well.
        transform: from a picture of Pillow's to a float tensor (C, H, W), normalised as the module
            takes it, such as `weights.transforms()` of torchvision; for what is no classifier.
        class_names: of the logits of such modules; their numbers where they are not given.
        **reading: workers, precision, decoder, unreadable, fit, progress, metrics and views; see
            `cfmask.inference.settings.Settings`.

    Returns:
        A report with rows for each model and set, and for each combination of sets.

    Raises:
        InputError: no models or no sets, two sets of one name or one that has the name of a
            combination, a set without images, labels outside the head, an image that cannot be
            read, logits that are no numbers or of another shape. Errors of a module or transform
            of one's own are raised as they are.

    Examples:
        >>> from torchvision.transforms import ToTensor
        >>> data = [(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 1)]
        >>> shifts = [cfmask.dataset_shift("shades", data, ["dark", "light"])]
        >>> def brightness(images):
        ...     return torch.stack([1 - images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)
        >>> report = cfmask.evaluate(brightness, shifts, transform=ToTensor())
        >>> report.value("brightness", "shades")
        1.0
    """
    given = _named(models, transform, class_names)
    kept, written = (None if path is None else Path(path) for path in (store, predictions))
    settings = Settings(batch_size=batch_size, store=kept, predictions=written, **reading)
    return report_of(given, shifts, settings, starts or {})


def _named(
    models: Given | Mapping[str, Given], transform: Transform | None, class_names: Sequence[str]
) -> dict[str, Model]:
    """The models by the name of their row, modules and functions with their transform."""
    several = models if isinstance(models, Mapping) else {_title(models): models}
    given = {str(name): _with_transform(model, transform) for name, model in several.items()}
    # One for each transform: what sees images alike reads them together.
    looks = {id(m[1]): Whole.before(m[1]) for m in given.values() if isinstance(m, tuple)}
    own: dict[str, Model] = {
        name: AnyModel(model[0], looks[id(model[1])], class_names)
        if isinstance(model, tuple)
        else model
        for name, model in given.items()
    }
    if (transform or class_names) and not any(isinstance(m, AnyModel) for m in own.values()):
        raise InputError(
            "Expected a module or function for this transform and these class names, but got "
            "classifiers alone, which bring both; leave them out."
        )
    return own


def _title(model: Given) -> str:
    if isinstance(model, Classifier | Blend):
        return described(model).name
    if isinstance(model, SavedAnswers):
        return model.path.name
    return named(model[0] if isinstance(model, tuple) else model)


def _with_transform(
    given: Given, transform: Transform | None
) -> Classifier | Blend | SavedAnswers | tuple[Function, Transform]:
    """A module or function with the transform that it needs; classifiers pass."""
    if isinstance(given, Classifier | Blend | SavedAnswers):
        return given
    call, own = given if isinstance(given, tuple) else (given, transform)
    if callable(call) and callable(own):
        return call, own
    raise InputError(
        f"Expected a classifier, or a module or function with its transform, but got "
        f"{named(call)} {'without one' if own is None else f'with {own!r:.60}'}; "
        "give evaluate(…, transform=…), from a picture to a float tensor (C, H, W)."
    )


def report_of(
    models: Mapping[str, Model],
    shifts: Sequence[Shift],
    settings: Settings,
    starts: Mapping[str, str],
    series: Mapping[str, tuple[str, str]] | None = None,
) -> ShiftReport:
    """What `evaluate` gives, by settings; arguments and errors are those of `evaluate`.

    Args:
        models: see `evaluate`.
        shifts: see `evaluate`.
        settings: how it is made.
        starts: see `evaluate`.
        series: row of a tuned model -> the front that it belongs to, and its seed; others are by
            themselves.
    """
    reference = checked_reference(len(models), shifts, settings.fit)
    inference = Inference(models, settings)
    table = inference.answer(shifts)
    classes = {name: classes_of(model) for name, model in models.items()}
    details = {
        name: {
            s.name: counts_of(s, own[s.name], classes[name], own.get(reference or ""))
            for s in shifts
        }
        for name, own in table.items()
    }
    rows = _rows(table, shifts, details, classes, reference, settings.measured)
    for model, ladder, own_rows, counts in ladder_figures(table, shifts):
        rows += own_rows
        details[model][ladder] = details[model].get(ladder, {}) | counts
    single = [row for row in rows if row.metric == "accuracy"]
    fits = fits_of(settings.fit, single, reference)
    tally = inference.tally
    facts = {name: facts_of(model) for name, model in models.items()}
    used = inference.precision if inference.models else None
    protocol = protocol_of(facts, shifts, used, settings.decoder, settings.measured)
    protocol["views"] = {
        name: {**view.described(name), "read": tally.views.get(name, {})}
        for name, view in settings.views.items()
    }
    for name, paths in tally.unreadable.items():
        protocol["sets"][name]["unreadable"] = paths
    report = ShiftReport(
        [*rows, *combination_rows(single, shifts), *robustness_rows(single, fits)],
        protocol,
        reference,
        details,
        list(differences(table, shifts, starts)),
        fits,
        curves_of(models, single, reference),
        run_facts(tally.images, tally.seconds, tally.reused),
    )
    fronts, gaps = fronts_of(report, _lines(report.curves, series or {}), _correct(table))
    return replace(report, fronts=fronts, gaps=gaps)


def _lines(curves: Sequence[Curve], series: Mapping[str, tuple[str, str]]) -> list[Line]:
    """The curves that were asked for, more than the two ends and one point."""
    long = [curve.models for curve in curves if len(curve.models) > 3]
    return [Line(*series.get(models[-1], (models[-1], "")), models) for models in long]


def _correct(table: Table) -> dict[str, dict[str, Bits]]:
    return {
        model: {name: answers.correct.numpy() for name, answers in own.items()}
        for model, own in table.items()
    }


def checked_reference(models: int, shifts: Sequence[Shift], fit: str) -> str | None:
    """Check that a report can be made, and name its reference set; None if it has none.

    Args:
        models: how many there are.
        shifts: the sets.
        fit: see `evaluate`.

    Raises:
        InputError: none of models or of sets, names that cannot stand in a report, unknown classes
            without a reference set, a ladder with a scale twice, or a fit that cannot be made.
    """
    if not models or not shifts:
        raise InputError("Expected at least one model and one shift set to evaluate, but got none.")
    names = _names(shifts)
    reference = next((shift.name for shift in shifts if shift.in_distribution), None)
    strangers = [shift.name for shift in shifts if shift.unknown]
    if strangers and reference is None:
        raise InputError(
            f"Expected a set of known classes for {strangers[0]} to be told from, in distribution, "
            "but got none; add one, such as digits/id, imagenet/val or a folder id, test or val."
        )
    check_ladders(shifts)
    check_fit(fit, models, names, reference)
    return reference


def _names(shifts: Sequence[Shift]) -> list[str]:
    """Names of the sets, each once and none that is taken by a combination."""
    names = [shift.name for shift in shifts]
    taken = {MEAN, HARMONIC, *COMBINATIONS}
    for k, name in enumerate(names):
        if name in taken or name in names[:k]:
            raise InputError(
                f"Expected sets of different names that are no combination's, but got {name!r}"
                f"{' twice' * (name not in taken)}; give one of them another name."
            )
    return names


def _rows(
    table: Table,
    shifts: Sequence[Shift],
    details: Mapping[str, Mapping[str, Counts]],
    classes: Mapping[str, Sequence[str]],
    reference: str | None,
    metrics: Mapping[str, Metric],
) -> list[Row]:
    """Figures on single sets, set by set."""
    rows: list[Row] = []
    for shift in shifts:
        for model, own in table.items():
            inside = own[reference] if reference and not shift.in_distribution else None
            counts, heads = details[model][shift.name], len(classes[model])
            rows += rows_of(model, Judged(own[shift.name], shift, counts, heads, inside), metrics)
    return rows


def curves_of(
    models: Mapping[str, Model], rows: Sequence[Row], reference: str | None
) -> list[Curve]:
    """The WiSE-FT curve of every line that models lie on, with the point that the reference chose.

    The ends of a line are points of its curve if they are among the models.

    Args:
        models: as they were evaluated.
        rows: accuracies on single sets.
        reference: name of the reference set, on which alone the choice is made.
    """
    lines = dict.fromkeys(model.line for model in models.values() if isinstance(model, Blend))
    inside = {row.model: row.value for row in rows if row.shift == reference}
    curves = []
    for line in lines:
        alphas: dict[str, float] = {}
        for name, model in models.items():
            if isinstance(model, Blend) and model.line is line:
                alphas[name] = model.alpha
            elif model in (line.start, line.tuned):
                alphas[name] = float(model is line.tuned)
        points = sorted(alphas, key=lambda name: alphas[name])
        chosen = max(points, key=lambda name: inside[name]) if inside else None
        curves.append(Curve([alphas[p] for p in points], points, chosen, reference))
    return curves
