"""Record: facts and training curves of a run for a report, from its folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfmask.files import read_json, read_text, read_yaml
from cfmask.runs.progress import POINTS
from cfmask.runs.run_folder import CONFIG
from cfmask.runs.summary import SUMMARY

METRICS_FILE = Path("csv") / "metrics.csv"
# Settings of data that say where the images are.
PLACES = ("root", "shards")


def training_curves(folder: Path) -> dict[str, list[list[float]]]:
    """What a run has logged.

    Args:
        folder: of the run.

    Returns:
        [step, value] of every metric, steps ascending from 0; a curve of more than `POINTS` as
        means of neighbours. Values that are not finite are left out. Empty if the
        run has no log.
    """
    file = folder / METRICS_FILE
    if not file.is_file():
        return {}
    found: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(read_text(file).splitlines()):
        step = _number(row.pop("step", None))
        row.pop("epoch", None)
        for name, text in row.items():
            value = _number(text)
            if step is not None and value is not None and isinstance(name, str):
                found.setdefault(name, []).append([step, value])
    return {name: _thinned(curve) for name, curve in found.items()}


def _number(text: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thinned(curve: list[list[float]]) -> list[list[float]]:
    """Means of neighbours, so that few enough are left."""
    size = math.ceil(len(curve) / POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [[sum(column) / len(part) for column in zip(*part)] for part in parts]


def run_facts(folder: Path) -> dict[str, str]:
    """Method, model, data and length of a run in words, as far as its folder has them.

    Args:
        folder: of the run.
    """
    config = _mapping(read_yaml(folder / CONFIG)) if (folder / CONFIG).is_file() else {}
    summary = _mapping(read_json(folder / SUMMARY)) if (folder / SUMMARY).is_file() else {}
    method, data = _mapping(config.get("model")), _mapping(config.get("data"))
    places = [_mapping(data.get("init_args")).get(key) for key in PLACES]
    images = summary.get("train_images")
    length = [f"{summary[key]:,} {key}" for key in ("epochs", "steps") if _count(summary.get(key))]
    facts = {
        "method": ", ".join([_last(method.get("class_path")), *_parts(method)]).strip(", "),
        "model": str(summary.get("model") or ""),
        "data": " ".join([_last(data.get("class_path")), *(str(p) for p in places if p)]),
        "trained": ", ".join(length) + (f" on {images:,} images" if _count(images) else ""),
    }
    return {name: words for name, words in facts.items() if words}


def _count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _parts(method: Mapping[str, Any]) -> list[str]:
    """Names of the classes that mask and fill."""
    made = _mapping(method.get("init_args")).get("counterfactual")
    several = made if isinstance(made, list) else [made]
    names = []
    for one in several:
        inner = _mapping(_mapping(one).get("init_args"))
        pair = [_last(_mapping(inner.get(key)).get("class_path")) for key in ("mask", "fill")]
        names += [" + ".join(name for name in pair if name)] if any(pair) else []
    return names


def _last(path: Any) -> str:
    """Name of a class without its modules."""
    return str(path or "").rpartition(".")[2]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
