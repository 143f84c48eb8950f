"""The lab: models and images with masks -> what the models answer when parts are hidden."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError, at_least, check_seed
from cfmask.inference.answer_store import key_of, model_key
from cfmask.inference.inference import eval_mode
from cfmask.missingness.class_similarity import class_similarity
from cfmask.missingness.curves import measured
from cfmask.missingness.features import Concordance, Linearity, concordance, linearity
from cfmask.missingness.findings import LIME, LINEARITY, SHAPE, SIZES, WINDOWS, Findings
from cfmask.missingness.hiding import DEFAULT, HIDINGS
from cfmask.missingness.lime import PLAIN_LIME, Lime
from cfmask.missingness.lime_quality import LimeQuality, lime_quality
from cfmask.missingness.per_image import Images, Measure, per_image
from cfmask.missingness.removal import ORDERS, Removal, check_names
from cfmask.missingness.sections import CurveRow
from cfmask.missingness.segments import Cutter, Segmented, cutters
from cfmask.missingness.shape_bias import ShapeBias, shape_bias
from cfmask.relevance import Relevance, default_relevance
from cfmask.version import __version__

MEASURES = ("shape", "lime", "linearity", "concordance")
# Those that need masks.
MASKED = ("shape", "lime")


def missingness(
    models: Mapping[str, Classifier],
    data: Mapping[str, Images],
    hidings: Sequence[str] = DEFAULT,
    segments: Sequence[str] = ("patches",),
    orders: Sequence[str] = ORDERS,
    side: int = 16,
    most_segments: int = 200,
    relevance: Relevance | None = None,
    seed: int = 0,
    samples: int = 1000,
    measures: Sequence[str] = ("shape",),
    wordnet: bool | None = None,
    lime: Lime = PLAIN_LIME,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Findings:
    """What models answer while parts of each image are hidden.

    Args:
        models: by name; put in eval mode for the time.
        data: the images as each model takes them, by its name.
        hidings: ways of hiding, keys of `HIDINGS`.
        segments: what is hidden as a whole, see `cfmask.missingness.segments.cutters`.
        orders: random, or most or least relevant segments first.
        side: of square patches, in pixels.
        most_segments: an image may have.
        relevance: what tells relevant segments; by default the masks of the images, where all have
            one, else the model's own relevance (see `default_relevance`).
        seed: of the random order, and of moved windows.
        samples: of the bootstrap.
        measures: beside the removal curves, among `MEASURES`; shape and lime are left out where
            not all images have a mask.
        wordnet: True insists on WordNet similarity, None leaves it out where it cannot be had.
        lime: LIME with its parameters.
        store: folder where answers are kept, so that an interrupted run goes on; None keeps none.
        progress: show a bar.

    Returns:
        Curves with their areas and tables, in every process.

    Raises:
        InputError: no model, an unknown name, an image that cannot be read or has too many
            segments, a model that cannot hide in one of these ways.
    """
    at_least(1, len(models), "model")
    at_least(1, samples, "samples of the bootstrap")
    check_choices(hidings, orders, measures)
    check_seed(seed)
    kept = Path(store) if store else None
    found = Findings({"version": __version__, "seed": seed, "samples": samples, "models": {}})
    with eval_mode(models.values()):
        for name, model in models.items():
            cuts = cutters(segments, side, most_segments, model.preprocess)
            images = Segmented(data[name], [cutter for cutter in cuts.values() if cutter.own])
            if paired := [one for one in ("concordance", "refill") if one in (*measures, *hidings)]:
                at_least(2, len(images), f"images for {paired[0]}")
            by = relevance or (None if images.masked else default_relevance(model))
            between = _similarity(model, images, wordnet)
            wanted = [m for m in measures if images.masked or m not in MASKED]
            makes = _makes(wanted, model, hidings, cuts, orders, side, by, lime, seed)
            told = (hidings, list(cuts), orders, side, most_segments, _described(by), seed)
            key = key_of(model_key(model), json.dumps([told, asdict(lime)]))
            answers = {
                kind: _arrays(per_image(make, images, key_of(key, kind), kept, kind, progress))
                for kind, make in makes.items()
            }
            labels = answers["removal"]["labels"] if images.labelled else None
            for place in itertools.product(cuts, orders, hidings):
                curves = measured(answers["removal"]["/".join(place)], labels, between, samples)
                found.removal.append(CurveRow(name, *place, curves))
            for title, rows in _tables(answers, samples, model.class_names):
                rows.sort(key=lambda row: _place(row, hidings))
                found.tables.setdefault(title, []).extend({"model": name, **row} for row in rows)
            about = {"encoder": model.name, "images": len(images), "relevance": _described(by)}
            found.protocol["models"][name] = about
    return found


def check_choices(hidings: Sequence[str], orders: Sequence[str], measures: Sequence[str]) -> None:
    """Raise an InputError for a name that is none, before anything is computed."""
    check_names("way of hiding", hidings, HIDINGS)
    check_names("order", orders, ORDERS)
    check_names("measure", measures, MEASURES)


def _makes(
    measures: Sequence[str],
    model: Classifier,
    hidings: Sequence[str],
    cuts: Mapping[str, Cutter],
    orders: Sequence[str],
    side: int,
    relevance: Relevance | None,
    lime: Lime,
    seed: int,
) -> dict[str, Measure]:
    """What is computed for each image, by the name of its measure; removal always."""
    makes: dict[str, Callable[[], Measure]] = {
        "removal": lambda: Removal(model, hidings, cuts, orders, relevance, seed),
        "shape": lambda: ShapeBias(model, hidings),
        "lime": lambda: LimeQuality(model, hidings, cuts, lime, seed),
        "linearity": lambda: Linearity(model, hidings, (2 * side, side)),
        "concordance": lambda: Concordance(model, hidings, seed),
    }
    return {name: makes[name]() for name in ("removal", *measures)}


def _similarity(
    model: Classifier, images: Images, wanted: bool | None
) -> npt.NDArray[np.float64] | None:
    """See `class_similarity`; images without labels have none."""
    if images.labelled:
        return class_similarity(model.class_names, wanted)
    if wanted:
        raise InputError("Expected images with labels for WordNet similarity.")
    return None


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: value.numpy() for name, value in tensors.items()}


def _tables(
    answers: Mapping[str, Mapping[str, npt.NDArray[Any]]], samples: int, names: Sequence[str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Tables of a model by their titles."""
    tables = []
    if "shape" in answers:
        tables.append((SHAPE, shape_bias(answers["shape"], samples, names)))
    if "lime" in answers:
        tables.append((LIME, lime_quality(answers["lime"], samples)))
    if "linearity" in answers:
        tables.append((LINEARITY, linearity(answers["linearity"], samples)))
    if "concordance" in answers:
        sizes, moved = concordance(answers["concordance"], samples)
        tables += [(SIZES, sizes), (WINDOWS, moved)]
    return tables


def _place(row: Mapping[str, Any], hidings: Sequence[str]) -> tuple[list[Any], int]:
    """Where a row stands in its table: by what was shown, then in the order of the hidings."""
    named = ("segments", "patch side", "image side", "half side", "moved by")
    return [row[name] for name in named if name in row], hidings.index(row["hidden by"])


def _described(relevance: Relevance | None) -> str:
    """A relevance with its settings, as a text that tells it from others."""
    if relevance is None:
        return "masks"
    plain = (str, int, float, Lime)
    settings = {k: v for k, v in sorted(vars(relevance).items()) if isinstance(v, plain)}
    return f"{type(relevance).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"
