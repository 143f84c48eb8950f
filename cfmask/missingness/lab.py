"""The lab: models and images with masks -> what the models answer when parts are hidden."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfmask.classifier import Classifier
from cfmask.errors import at_least
from cfmask.inference.answer_store import key_of, model_key
from cfmask.inference.inference import eval_mode
from cfmask.missingness.curves import measured
from cfmask.missingness.findings import CurveRow, Findings
from cfmask.missingness.hiding import DEFAULT
from cfmask.missingness.per_image import Images, per_image
from cfmask.missingness.removal import ORDERS, Removal, check_names
from cfmask.relevance import Relevance, default_relevance
from cfmask.version import __version__

SAMPLES = 1000


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
    samples: int = SAMPLES,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Findings:
    """What models answer while more and more of each image is hidden.

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
        seed: of the random order.
        samples: of the bootstrap.
        store: folder where answers are kept, so that an interrupted run goes on; None keeps none.
        progress: show a bar.

    Returns:
        Curves with their areas, in every process.

    Raises:
        InputError: no model, an unknown name, an image that cannot be read or has too many
            segments, a model that cannot hide in one of these ways.
    """
    at_least(1, len(models), "model")
    at_least(1, samples, "samples of the bootstrap")
    check_names(hidings, segments, orders)
    kept = Path(store) if store else None
    found = Findings({"version": __version__, "seed": seed, "samples": samples, "models": {}})
    with eval_mode(models.values()):
        for name, model in models.items():
            images = data[name]
            by = relevance or (None if images.masked else default_relevance(model))
            make = Removal(model, hidings, segments, orders, side, most_segments, by, seed)
            how = [hidings, segments, orders, side, most_segments, seed, described(by)]
            key = key_of(model_key(model), json.dumps(how, default=str))
            answers = per_image(make, images, key, kept, f"Hiding parts, {name}", progress)
            labels = answers["labels"].numpy() if images.labelled else None
            for place in itertools.product(segments, orders, hidings):
                predictions = answers["/".join(place)].numpy()
                curves = measured(predictions, labels, None, samples)
                found.removal.append(CurveRow(name, *place, curves))
            found.protocol["models"][name] = {
                "encoder": model.name,
                "images": len(images),
                "relevance": described(by) if by else "masks",
            }
    return found


def described(relevance: Relevance | None) -> str:
    """A relevance with its settings, as a text that tells it from others."""
    if relevance is None:
        return ""
    settings = {
        k: v for k, v in sorted(vars(relevance).items()) if isinstance(v, str | int | float)
    }
    return f"{type(relevance).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"
