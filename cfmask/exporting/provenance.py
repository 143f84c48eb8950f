"""Provenance: an exported model's spec, runs, versions and figures, as plain JSON.

It goes into the model's file, and beside it as provenance.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cfmask.checkpoint import plain_spec
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.protocol import versions
from cfmask.files import read_json, read_text
from cfmask.reporting.report import ShiftReport
from cfmask.runs.run_folder import CONFIG
from cfmask.runs.summary import SUMMARY

KEY = "cfmask"
# Numbers of a run's summary that a model card says.
COUNTS = ("train_images", "val_images", "classes", "steps", "batch")
FILE = "provenance.json"


@dataclass(frozen=True)
class Provenance:
    """What a model is and where it comes from.

    Attributes:
        format: name of the export's format.
        weights: "tuned", "WiSE-FT 0.5", "mean of 3 runs", or both; or how they were merged.
        classifier: the classifier's spec: encoder, class names, preprocessing, mean and std.
        runs: of each run whose weights are in it: its folder's name, the text of its config.yaml,
            and its summary.json, with the numbers of images.
        versions: of the libraries that wrote the export.
        report: figures of these very weights and of the starting point with their protocol; None
            if they were not evaluated.
        agreement: how far the file, loaded back, was found from the classifier.
        merged: what `cfmask merge` made the weights of, and what it found; empty for others.
    """

    format: str
    weights: str
    classifier: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    report: ShiftReport | None = None
    agreement: str = ""
    merged: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)


def describe(
    classifier: Classifier, form: str, runs: Sequence[Path], alpha: float | None
) -> Provenance:
    """The provenance of weights that were made of runs.

    Args:
        classifier: the weights that are exported.
        form: name of the format.
        runs: run folders, or weights files, whose mean it is.
        alpha: WiSE-FT weight by which the starting point was mixed in; None for none.
    """
    weights = "tuned" if len(runs) == 1 else f"mean of {len(runs)} runs"
    row = weights if alpha is None else f"WiSE-FT {alpha:g}"
    if alpha is not None:
        weights = row if len(runs) == 1 else f"{weights}, {row}"
    report = _figures(runs[0], row) if len(runs) == 1 else None
    facts = [_run_facts(run) for run in runs]
    return Provenance(form, weights, plain_spec(classifier), facts, versions(), report)


def _run_facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": run.name}
    if (run / CONFIG).is_file():
        facts["config"] = read_text(run / CONFIG)
    if (run / SUMMARY).is_file():
        facts["training"] = _training(run / SUMMARY)
    return facts


def _training(file: Path) -> dict[str, Any]:
    """A run's summary, in which all that a model card says is there."""
    found = read_json(file)
    kinds = dict.fromkeys(COUNTS, int) | {"method": str}
    for name, kind in kinds.items():
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, kind):
            raise InputError(
                f"Expected the summary of a run in {file}, but {name} is {value!r:.50}."
            )
    return dict(found)


def _figures(run: Path, model: str) -> ShiftReport | None:
    """Rows of the model and of the starting point in the run's report, if the model has any."""
    if not (run / "report.json").is_file():
        return None
    report = ShiftReport.load(run / "report.json")
    rows = [row for row in report.rows if row.model in (model, "zero-shot", "pretrained")]
    return replace(report, rows=rows) if model in {row.model for row in rows} else None
