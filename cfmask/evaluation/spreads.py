"""Spreads: figures of runs that differ by their seed alone -> mean and standard deviation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev

from cfmask.evaluation.figures import Row, Spread


def spreads_of(
    rows: Sequence[Row], groups: Mapping[str, Sequence[str]], starts: Mapping[str, str]
) -> Iterator[Spread]:
    """Mean and standard deviation of every figure that all models of a group have.

    Args:
        rows: figures of single models.
        groups: name -> models of a group, at least two.
        starts: tuned model -> the model that it was tuned from.
    """
    cells = {(row.model, row.shift, row.metric): row.value for row in rows}
    columns = dict.fromkeys((row.shift, row.metric) for row in rows)
    for group, models in groups.items():
        for shift, metric in columns:
            pairs = [
                (cells.get((m, shift, metric)), cells.get((starts.get(m, ""), shift, metric)))
                for m in models
            ]
            values = [value for value, _ in pairs if value is not None]
            gains = [v - start for v, start in pairs if v is not None and start is not None]
            if len(values) < len(models):
                continue
            figures = [fmean(values), stdev(values)]
            gained = [fmean(gains), stdev(gains)] if len(gains) == len(models) else [None, None]
            yield Spread(group, list(models), shift, metric, *figures, *gained)
