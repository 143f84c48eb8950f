"""Forgetting: what tuning does to zero-shot accuracy on other tasks. Pure functions.

The mean of T tasks is unweighted; their images are independent. Its interval is normal; that of
the mean paired difference squares and adds the distances to the ends of the tasks' own intervals
(Zou and Donner 2008, Statistics in Medicine 27).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from cfmask.evaluation.answers import Answers
from cfmask.evaluation.estimates import combined, interval, paired_difference
from cfmask.evaluation.figures import Row

# The combination of all tasks.
MEAN_OF_TASKS = "mean of tasks"
ACCURACY, CHANGE = "task_accuracy", "task_change"


def task_rows(
    tasks: Mapping[str, Mapping[str, Answers]], starts: Mapping[str, str]
) -> Iterator[Row]:
    """Accuracy of each model on each task and their mean; the change from its starting point.

    Args:
        tasks: task -> model -> answers, those of one task to the same images.
        starts: row of a tuned model -> row of the model that it was tuned from.
    """
    for model in next(iter(tasks.values()), {}):
        own = {name: of[model].correct for name, of in tasks.items()}
        counts = [(int(correct.sum()), len(correct)) for correct in own.values()]
        for name, (right, total) in zip(own, counts):
            ends = interval(right, total)
            yield Row(model, name, ACCURACY, right / total, right, total, *ends)
        if len(own) > 1:
            value, low, high = combined(counts, [1 / len(own)] * len(own))
            yield Row(model, MEAN_OF_TASKS, ACCURACY, value, None, None, low, high)
        start = starts.get(model)
        if start is None:
            continue
        changes = []
        for name, after in own.items():
            before = tasks[name][start].correct
            lost, won = int((before & ~after).sum()), int((after & ~before).sum())
            changes.append(paired_difference(lost, won, len(after)))
            value, low, high = changes[-1]
            yield Row(model, name, CHANGE, value, None, None, low, high, f"from {start}")
        if len(own) > 1:
            value, low, high = mean_change(changes)
            yield Row(model, MEAN_OF_TASKS, CHANGE, value, None, None, low, high, f"from {start}")


def mean_change(changes: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of independent differences, each value, low and high, with its interval."""
    count = len(changes)
    value = sum(change for change, _, _ in changes) / count
    below = math.hypot(*(change - low for change, low, _ in changes)) / count
    above = math.hypot(*(high - change for change, _, high in changes)) / count
    return value, value - below, value + above
