"""Further charts: curves of unknown classes, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from cfmask.evaluation.metrics import METRICS
from cfmask.evaluation.results import Results
from cfmask.reporting.panels import Panel, Series, svg
from cfmask.reporting.tables import heading

# What stands below the curve of a set of unknown classes.
SUMMARY = {"AUROC": "auroc_max_logit", "FPR95": "fpr95_max_logit", "OSCR": "oscr_max_logit"}


def unknown_charts(report: Results, styles: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """For each set of unknown classes its curve of every drawn model, and their figures."""
    for name in report.sets:
        curves = {m: report.details.get(m, {}).get(name, {}).get("oscr") for m in styles}
        drawn = {m: curve for m, curve in curves.items() if curve}
        if drawn:
            series = [Series(styles[m], _per_cent(curve["ccr"])) for m, curve in drawn.items()]
            across = _per_cent(next(iter(drawn.values()))["fpr"])
            title = f"Open-set classification rate against {report.short(name)}"
            how = "unknown images, %", (0, 100)
            panel = Panel(title, "known and right, %", across, series, *how)
            figures = [(m, _summary(report, m, name)) for m in drawn]
            yield {"name": heading(report, name), "svg": Markup(svg(panel)), "figures": figures}


def _summary(report: Results, model: str, name: str) -> str:
    words = []
    for short, metric in SUMMARY.items():
        row = report.cells(metric).get((model, name))
        words += [f"{short} {METRICS[metric].text(row.value)}"] if row else []
    return ", ".join(words)


def _per_cent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]
