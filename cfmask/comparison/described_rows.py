"""Described rows: for each model with a text tower, a row with a head from descriptions."""

from __future__ import annotations

from cfmask.classifier import Classifier
from cfmask.comparison.sources import Found
from cfmask.descriptions import read_descriptions
from cfmask.errors import InputError
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


def check_descriptions(classifier: Classifier, source: str | None) -> None:
    """Refuse descriptions that do not suit a classifier, before time is spent.

    Raises:
        InputError: no text tower, or see `read_descriptions`.
    """
    if source is not None and not has_text(classifier):
        raise _no_text()
    if source is not None:
        read_descriptions(source, classifier.class_names)


def _no_text() -> InputError:
    return InputError(
        "Expected a model with a text tower for descriptions, but there is none; name an "
        "open_clip model or a run of one, or leave descriptions out."
    )
