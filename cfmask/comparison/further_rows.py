"""Further rows: each model with a head from descriptions, or with crops that it chooses itself."""

from __future__ import annotations

from cfmask.classifier import Classifier
from cfmask.comparison.sources import Found
from cfmask.descriptions import read_descriptions
from cfmask.errors import InputError
from cfmask.families.cropped import CropSelection
from cfmask.families.described import described, has_text


def with_descriptions(rows: Found, source: str | None, normalise: bool, trust: bool) -> Found:
    """The rows, then one with a head from descriptions for each that can have it.

    Its starting point is the model itself, so that the report compares the two heads. Models
    between two (WiSE-FT) have none.

    Args:
        rows: see `models_of`.
        source: see `described`; None adds nothing.
        normalise: see `described`.
        trust: see `described`.

    Raises:
        InputError: no model with a text tower; see `described`.
    """
    if source is None:
        return rows
    models, starts = dict(rows.models), dict(rows.starts)
    for name, model in rows.models.items():
        if isinstance(model, Classifier) and has_text(model):
            other = f"{name} + descriptions{'' if normalise else ', plain means'}"
            models[other], starts[other] = described(model, source, normalise, trust), name
    if len(models) == len(rows.models):
        raise _no_text()
    return Found(models, starts, rows.runs)


def with_crop_selection(rows: Found, reach: int | None) -> Found:
    """The rows, then one with crop selection for each classifier, compared with itself.

    Args:
        rows: see `models_of`.
        reach: see `CropSelection`; None adds nothing.

    Raises:
        InputError: no classifier; see `CropSelection`.
    """
    if reach is None:
        return rows
    models, starts = dict(rows.models), dict(rows.starts)
    for name, model in rows.models.items():
        if isinstance(model, Classifier):
            other = f"{name} + crop selection {reach}"
            models[other], starts[other] = CropSelection(model, reach).eval(), name
    if len(models) == len(rows.models):
        raise InputError("Expected a model that is run for crop_selection, but there is none.")
    return Found(models, starts, rows.runs)


def check_rows(classifier: Classifier, source: str | None, reach: int | None) -> None:
    """Refuse further rows that do not suit a classifier, before time is spent.

    Raises:
        InputError: descriptions without a text tower, or see `read_descriptions`; a reach that
            `CropSelection` does not take.
    """
    if reach is not None:
        CropSelection(classifier, reach)
    if source is not None and not has_text(classifier):
        raise _no_text()
    if source is not None:
        read_descriptions(source, classifier.class_names)


def _no_text() -> InputError:
    return InputError(
        "Expected a model with a text tower for descriptions, but there is none; name an "
        "open_clip model or a run of one, or leave descriptions out."
    )
