"""Settings: how an evaluation reads its sets, what it keeps, and what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, get_args

from cfmask.decoding import Decoder
from cfmask.errors import InputError, at_least, unknown
from cfmask.evaluation.metrics import METRICS, Metric
from cfmask.inference.readable import Unreadable
from cfmask.precision import Precision
from cfmask.views.view import View, metrics_of


class Reading(TypedDict, total=False):
    """Those of the `Settings` that `evaluate` hands on, for `**reading: Unpack[Reading]`."""

    workers: int
    precision: Precision
    decoder: Decoder
    unreadable: Unreadable
    fit: str
    progress: bool
    metrics: Mapping[str, Metric]
    views: Mapping[str, View]


@dataclass(frozen=True)
class Settings:
    """How an evaluation is made, whatever its models and sets.

    Attributes:
        batch_size: images at a time.
        workers: processes that decode images.
        precision: bf16 runs the encoders under autocast; heads stay in fp32. auto is bf16 where
            the machine has instructions for it; the protocol says which it was.
        decoder: of image files; "pil" is Pillow alone, slower and exactly as in published figures.
        unreadable: "stop" at an image that cannot be read, which is named, or count it as a
            "wrong" answer, marked in the report.
        fit: line that effective robustness is measured from: `builtin`, `models`, `none` or a CSV
            file; see `cfmask.evaluation.robustness`.
        store: folder where answers are kept and looked for; None keeps none.
        others: further folders where answers are looked for.
        predictions: folder for a Parquet file of each model on each set; None writes none.
        progress: show a bar with images a second and the time left over all sets.
        metrics: your own, by name, measured beside those of `METRICS`.
        views: further versions of each image that the models are shown, by name.

    Raises:
        InputError: numbers that are too small, an unknown choice, or a metric that has the name of
            one of cfmask's.
    """

    batch_size: int = 250
    workers: int = 0
    precision: Precision = "fp32"
    decoder: Decoder = "fast"
    unreadable: Unreadable = "stop"
    fit: str = "builtin"
    store: Path | None = None
    others: tuple[Path, ...] = ()
    predictions: Path | None = None
    progress: bool = False
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(1, self.batch_size, "images at a time (batch_size)")
        at_least(0, self.workers, "workers")
        if self.unreadable not in get_args(Unreadable):
            raise unknown("choice of unreadable", self.unreadable, get_args(Unreadable))
        taken = sorted(set(self.metrics) & set(METRICS))
        if taken:
            raise InputError(
                f"Expected metrics of one's own under new names, but {taken[0]} is one of cfmask's."
            )

    @property
    def measured(self) -> Mapping[str, Metric]:
        """All metrics: those of `METRICS`, of the views, then one's own."""
        return {**METRICS, **metrics_of(self.views), **self.metrics}

    @property
    def logits(self) -> bool:
        """Whether a metric needs the logits of all images."""
        return any(metric.needs_logits for metric in self.measured.values())
