"""Group charts: accuracy of each group of a set's images, as bars with intervals for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from cfmask.evaluation.estimates import interval
from cfmask.evaluation.results import Results
from cfmask.reporting.panels import Panel, Series, svg
from cfmask.reporting.tables import heading

# Most groups of a set that are drawn.
MOST_GROUPS = 16


def group_charts(report: Results, styles: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """For each set with groups the accuracy of every drawn model on each, with 95 % intervals.

    Of many groups only those are drawn on which the models are worst on the whole, in the order of
    the set; `words` says so.
    """
    for name in report.sets:
        kept = {
            model: {
                group: (right, total)
                for group, right, total in zip(*(counts[k] for k in ("names", "correct", "total")))
            }
            for model in styles
            if (counts := report.details.get(model, {}).get(name, {}).get("groups"))
        }
        if kept:
            every = list(next(iter(kept.values())))
            shown = _worst(kept, every)
            words = f"The {len(shown)} worst of {len(every)} groups." if shown != every else ""
            panel = Panel(
                f"Accuracy by group of {report.short(name)}",
                "accuracy, %",
                shown,
                [_series(styles[model], own, shown) for model, own in kept.items()],
                limits=(0, 100),
            )
            yield {"name": heading(report, name), "svg": Markup(svg(panel)), "words": words}


def _worst(kept: Mapping[str, Mapping[str, tuple[int, int]]], every: list[str]) -> list[str]:
    def share(group: str) -> float:
        return sum(own[group][0] / own[group][1] for own in kept.values() if group in own)

    drawn = set(sorted(every, key=share)[:MOST_GROUPS])
    return [group for group in every if group in drawn]


def _series(number: int, own: Mapping[str, tuple[int, int]], shown: list[str]) -> Series:
    pairs = [own[group] for group in shown]
    ends = [[100 * end for end in interval(*pair)] for pair in pairs]
    shares = [100 * right / total for right, total in pairs]
    return Series(number, shares, [low for low, _ in ends], [high for _, high in ends])
