"""Metrics of one's own, by their import paths."""

from __future__ import annotations

from collections.abc import Sequence

from cfmask.errors import InputError
from cfmask.evaluation.metrics import Metric
from cfmask.trust import find_named, is_path


def own_metrics(paths: Sequence[str]) -> dict[str, Metric]:
    """Your own metrics, by their import paths, which are their names.

    Args:
        paths: each of a `Metric`, or of a function of `Judged` that returns what `Metric.of` does.
            A function's title is its name, its meaning the first line of its docstring; figures are
            shown unscaled, and it gets logits if it has the attribute `needs_logits = True`. The
            paths are imported, so they must come from the user.

    Raises:
        InputError: no import path, or nothing of that kind there.
    """
    return {path: _own_metric(path) for path in paths}


def _own_metric(path: str) -> Metric:
    if not is_path(path):
        raise InputError(
            f"Expected metrics of one's own by import path, such as my_module.MARGIN, but got "
            f"{path}; cfmask's own are always measured, and --show prints them."
        )
    found = find_named(path)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise InputError(
            f"Expected {path} to be a Metric or a function of Judged, but got {found!r:.60}."
        )
    title = path.rpartition(".")[2].replace("_", " ").capitalize()
    meaning = (getattr(found, "__doc__", "") or "").strip().partition("\n")[0].rstrip(".")
    logits = bool(getattr(found, "needs_logits", False))
    return Metric(title, found, meaning, "", 1, 3, 0, needs_logits=logits)
