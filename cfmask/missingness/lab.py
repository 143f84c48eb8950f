"""The lab: models and images with masks -> what the models answer when parts are hidden."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError, at_least, unknown
from cfmask.inference.answer_store import key_of, model_key
from cfmask.inference.inference import eval_mode
from cfmask.missingness.class_similarity import class_similarity
from cfmask.missingness.curves import measured
from cfmask.missingness.features import Concordance, Linearity, concordance, linearity
from cfmask.missingness.findings import CurveRow, Findings
from cfmask.missingness.hiding import DEFAULT
from cfmask.missingness.lime import LimeQuality, lime_quality
from cfmask.missingness.per_image import Images, Measure, per_image
from cfmask.missingness.removal import ORDERS, Removal, check_names
from cfmask.missingness.shape_bias import ShapeBias, shape_bias
from cfmask.relevance import Relevance, default_relevance
from cfmask.version import __version__

MEASURES = ("shape", "lime", "linearity", "concordance")
# Titles of the tables.
SHAPE = "Accuracy with the object hidden, and with as much elsewhere"
LIME = "LIME against the mask of the object, and the model without the highest segments"
LINEARITY = "Features of an image against the sum of its patches'"
SIZES = "Change of the cosine of two images' features when they are smaller"
WINDOWS = "Cosine of the features of a window and of the same window moved"


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
    lime_samples: int = 512,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Findings:
    """What models answer while parts of each image are hidden.

    Args:
        models: by name; put in eval mode for the time.
        data: the images as each model takes them, by its name.
        hidings: ways of hiding, keys of `HIDINGS`.
        segments: what is hidden as a whole: patches, slic, quickshift.
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
        lime_samples: answers of the model to each image, for LIME.
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
    check_names(hidings, segments, orders)
    for name in measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    kept = Path(store) if store else None
    found = Findings({"version": __version__, "seed": seed, "samples": samples, "models": {}})
    ways = (hidings, segments, orders, side, most_segments)
    with eval_mode(models.values()):
        for name, model in models.items():
            images = data[name]
            by = relevance or (None if images.masked else default_relevance(model))
            key = key_of(model_key(model), json.dumps([ways, seed, lime_samples, _described(by)]))
            makes = _makes(model, images, measures, ways, by, seed, lime_samples)
            answers = {
                kind: _arrays(per_image(make, images, key_of(key, kind), kept, kind, progress))
                for kind, make in makes.items()
            }
            labels = answers["removal"]["labels"] if images.labelled else None
            between = None if labels is None else class_similarity(model.class_names, wordnet)
            if wordnet and between is None:
                raise InputError("Expected images with labels for WordNet similarity.")
            for place in itertools.product(segments, orders, hidings):
                curves = measured(answers["removal"]["/".join(place)], labels, between, samples)
                found.removal.append(CurveRow(name, *place, curves))
            for title, table in _tables(answers, samples, model.class_names):
                found.tables.setdefault(title, []).extend({"model": name, **row} for row in table)
            about = {"encoder": model.name, "images": len(images), "relevance": _described(by)}
            found.protocol["models"][name] = about
    return found


def _makes(
    model: Classifier,
    images: Images,
    measures: Sequence[str],
    ways: tuple[Sequence[str], Sequence[str], Sequence[str], int, int],
    relevance: Relevance | None,
    seed: int,
    lime_samples: int,
) -> dict[str, Measure]:
    """What is computed for each image, by the name of its measure; removal always."""
    hidings, segments, _, side, _ = ways
    makes: dict[str, Measure] = {"removal": Removal(model, *ways, relevance, seed)}
    if "shape" in measures and images.masked:
        makes["shape"] = ShapeBias(model, hidings)
    if "lime" in measures and images.masked:
        makes["lime"] = LimeQuality(model, hidings, segments, side, lime_samples, seed)
    if "linearity" in measures:
        makes["linearity"] = Linearity(model, hidings, (2 * side, side))
    if "concordance" in measures:
        makes["concordance"] = Concordance(model, hidings, seed)
    return makes


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
        tables.append((LINEARITY, linearity(answers["linearity"])))
    if "concordance" in answers:
        sizes, moved = concordance(answers["concordance"])
        tables += [(SIZES, sizes), (WINDOWS, moved)]
    return tables


def _described(relevance: Relevance | None) -> str:
    """A relevance with its settings, as a text that tells it from others."""
    if relevance is None:
        return "masks"
    settings = {
        k: v for k, v in sorted(vars(relevance).items()) if isinstance(v, str | int | float)
    }
    return f"{type(relevance).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"
