"""Further charts: ladders of scales and sets of unknown classes, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cfmask.evaluation.estimates import interval
from cfmask.evaluation.metrics import METRICS, Metric
from cfmask.evaluation.results import Results
from cfmask.reporting.panels import Panel, Series, svg
from cfmask.reporting.rendering import Cell, Column, Table
from cfmask.reporting.tables import heading

SHARE = Metric("Share")
# What stands below the charts of a set.
UNKNOWN = {"AUROC": "auroc_max_logit", "FPR95": "fpr95_max_logit", "OSCR": "oscr_max_logit"}
FAILURE = {"mean failure point": "failure_point", "sd": "failure_sd", "largest": "failure_max"}

# Counts of a drawn model on a set or ladder, by the model.
Kept = dict[str, dict[str, list[Any]]]


def unknown_charts(report: Results, styles: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """For each set of unknown classes its curve of every drawn model, and their figures."""
    for name, kept in _kept(report, styles, "oscr").items():
        series = [Series(styles[m], _per_cent(curve["ccr"])) for m, curve in kept.items()]
        across = _per_cent(next(iter(kept.values()))["fpr"])
        title = f"Open-set classification rate against {report.short(name)}"
        panel = Panel(
            title, "known and right, %", across, series, "unknown images, %", limits=(0, 100)
        )
        words = "; ".join(f"{m}: {_summary(report, m, name, UNKNOWN)}" for m in kept)
        yield {"name": heading(report, name), "svg": Markup(svg(panel)), "words": words}


def ladder_charts(report: Results, styles: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """For each ladder its accuracies by scale, then its failure points, of every drawn model."""
    failures = _kept(report, styles, "failures")
    for name, kept in _kept(report, styles, "scales").items():
        title, short = heading(report, name), report.short(name)
        yield {"name": title, "svg": Markup(svg(_curve(kept, styles, short))), "words": ""}
        own = failures[name]
        words = "; ".join(f"{m}: {_summary(report, m, name, FAILURE)}" for m in own)
        panel = _histogram(own, styles, short)
        yield {"name": f"{title}: failure points", "svg": Markup(svg(panel)), "words": words}


def _curve(kept: Kept, styles: Mapping[str, int], short: str) -> Panel:
    series = []
    for model, counts in kept.items():
        pairs = list(zip(counts["correct"], counts["total"]))
        ends = [interval(*pair) for pair in pairs]
        low, high = (_per_cent([end[k] for end in ends]) for k in (0, 1))
        y = [100 * right / total for right, total in pairs]
        series.append(Series(styles[model], y, low, high))
    scales = next(iter(kept.values()))["scale"]
    title = f"Accuracy by scale on {short}"
    return Panel(title, "accuracy, %", scales, series, "scale", limits=(0, 100))


def _histogram(kept: Kept, styles: Mapping[str, int], short: str) -> Panel:
    *scales, _ = next(iter(kept.values()))["scale"]
    places = [*(f"{scale:g}" for scale in scales), "never"]
    series = [
        Series(styles[m], _per_cent([n / sum(own["count"]) for n in own["count"]]))
        for m, own in kept.items()
    ]
    return Panel(f"Failure points on {short}", "trajectories, %", places, series)


def ladder_tables(report: Results, styles: Mapping[str, int]) -> list[Table]:
    """Accuracies by scale with their intervals, a table for all ladders of the same scales."""
    groups: dict[tuple[float, ...], list[list[list[Cell]]]] = {}
    for name, kept in _kept(report, styles, "scales").items():
        rows = [
            [Cell(heading(report, name), faint=k > 0), Cell(model), *_shares(counts)]
            for k, (model, counts) in enumerate(kept.items())
        ]
        groups.setdefault(tuple(next(iter(kept.values()))["scale"]), []).append(rows)
    heads = [Column("nuisance", words=True), Column("model", words=True)]
    return [
        Table("Accuracy by scale, %", [*heads, *(Column(f"{s:g}") for s in scales)], rows)
        for scales, rows in groups.items()
    ]


def _shares(counts: Mapping[str, Sequence[int]]) -> Iterator[Cell]:
    for right, total in zip(counts["correct"], counts["total"]):
        ends = "–".join(SHARE.text(end) for end in interval(right, total))
        yield Cell(SHARE.text(right / total), below=ends)


def _kept(report: Results, styles: Mapping[str, int], kind: str) -> dict[str, Kept]:
    """Counts of a kind by set or ladder, then by drawn model."""
    found: dict[str, Kept] = {}
    for model in styles:
        for name, counts in report.details.get(model, {}).items():
            if kind in counts:
                found.setdefault(name, {})[model] = counts[kind]
    return found


def _summary(report: Results, model: str, name: str, shown: Mapping[str, str]) -> str:
    words = []
    for short, metric in shown.items():
        row = report.cells(metric).get((model, name))
        words += [f"{short} {METRICS[metric].text(row.value)}"] if row else []
    return ", ".join(words)


def _per_cent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
