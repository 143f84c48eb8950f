"""Details: tables of the page alone: paired differences, worst classes, sets."""

from __future__ import annotations

from itertools import groupby
from statistics import fmean
from typing import Any

from markupsafe import Markup

from cfmask.evaluation.figures import Difference
from cfmask.evaluation.metrics import Metric
from cfmask.evaluation.results import Results
from cfmask.reporting.rendering import Cell, Column, Table
from cfmask.reporting.svg import interval_bar
from cfmask.reporting.tables import heading, incomplete

POINTS = Metric("Difference", unit="points", signed=True)
SHARE = Metric("Share")
# Most classes of a set in the table of worst classes.
WORST = 3


def differences_table(report: Results, styles: dict[str, int]) -> Table:
    """Paired comparisons of the drawn models, with the bar of each on a common axis."""
    shown = report.columns()
    kept = [d for d in report.differences if d.second in styles and d.shift in shown]
    kept.sort(key=lambda d: report.models.index(d.second))
    firsts = list(dict.fromkeys(d.first for d in kept))
    reach = max((abs(end) for d in kept for end in (d.low, d.high)), default=1) or 1
    other = firsts[0] if len(firsts) == 1 else "the other"
    heads = ["p", f"only {other} right", "only this right", "images"]
    columns = [
        Column("model", words=True),
        Column("set", words=True),
        Column("points"),
        Column("interval"),
        Column("difference, drawn", unseen=True),
        *(Column(head) for head in heads),
    ]
    groups = []
    for (_, first), pairs in groupby(kept, key=lambda d: (d.second, d.first)):
        remark = f"against {first}" if len(firsts) > 1 else ""
        rows = [_difference(report, d, reach, styles[d.second]) for d in pairs]
        groups.append(_named(rows, remark))
    title = (
        f"Accuracy against {' or '.join(firsts)} on the same images, in points with the 95 % "
        "interval; p: exact McNemar test, two-sided"
    )
    return Table(title, columns, groups)


def _difference(report: Results, pair: Difference, reach: float, style: int) -> list[Cell]:
    words = f"{POINTS.text(pair.difference)} points for {pair.second} against {pair.first}"
    low, at, high = (value / reach for value in (pair.low, pair.difference, pair.high))
    return [
        Cell(pair.second),
        Cell(heading(report, pair.shift)),
        Cell(POINTS.text(pair.difference)),
        Cell(f"{POINTS.text(pair.low)} to {POINTS.text(pair.high)}"),
        Cell("", drawing=Markup(interval_bar(low, at, high, style, words))),
        Cell("< 0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"),
        *(Cell(f"{count:,}") for count in (pair.only_first, pair.only_second, pair.total)),
    ]


def _named(rows: list[list[Cell]], remark: str = "") -> list[list[Cell]]:
    """Rows of one name, which is grey in all but the first."""
    first, *others = rows
    head = Cell(first[0].text, remark=remark)
    return [[head, *first[1:]], *([Cell(row[0].text, faint=True), *row[1:]] for row in others)]


def judged_model(report: Results, styles: dict[str, int]) -> str | None:
    """The model whose worst classes are listed: a tuned one, else the second, else the only one."""
    models = [model for model in styles if model in report.details]
    tuned = [curve.models[-1] for curve in report.curves if curve.models[-1] in models]
    return next(iter([*tuned, *models[1:2], *models]), None)


def worst_table(report: Results, styles: dict[str, int]) -> Table:
    """For each set, a model's worst classes, of those below the mean of all."""
    judged = judged_model(report, styles)
    models = [model for model in styles if model in report.details]
    columns = [Column("set", words=True), Column("class", words=True), Column("images")]
    groups = []
    for shift in report.columns() if judged else ():
        known = [model for model in models if shift in report.details[model]]
        counts = {model: report.worst_classes(model, shift, None) for model in known}
        # Of classes of one name the worst.
        shares = {m: {n: right / total for n, right, total in reversed(counts[m])} for m in known}
        worst = counts.get(str(judged), [])
        mean = fmean(right / total for _, right, total in worst) if worst else 0.0
        rows = [
            [
                Cell(heading(report, shift)),
                Cell(name),
                Cell(f"{total:,}"),
                *(
                    Cell(SHARE.text(shares[m][name]) if name in shares.get(m, {}) else "")
                    for m in models
                ),
            ]
            for name, right, total in worst[:WORST]
            if right / total < mean
        ]
        groups += [_named(rows)] if rows else []
    columns += [Column(model) for model in models]
    return Table("Accuracy on single classes, %", columns, groups)


def sets_table(report: Results) -> Table:
    """Size, rules, source and licence of each set; empty columns are left out."""
    totals = {name: rule["images"] for name, rule in report.sets.items() if rule.get("images")}
    totals |= {row.shift: row.total for row in report.of("accuracy") if row.total}
    partly = incomplete(report)
    facts = {name: _set_facts(rule, partly.get(name, "")) for name, rule in report.sets.items()}
    keys = ("rule", "source", "licence")
    told = [key for key in keys if any(own[key] for own in facts.values())]
    columns = [Column("set", words=True), Column("images"), Column("classes that compete")]
    rows = [
        [
            Cell(heading(report, name)),
            Cell(f"{totals[name]:,}" if name in totals else ""),
            Cell(own["classes"]),
            *(Cell(own[key]) for key in told),
        ]
        for name, own in facts.items()
    ]
    return Table("Sets", [*columns, *(Column(key, words=True) for key in told)], [rows])


def _set_facts(rule: dict[str, Any], partly: str) -> dict[str, str]:
    rules = [plain(rule.get(key, "")) for key in ("note", "one_to_many", "groups")]
    whole = f"Not whole: {partly}." if partly else ""
    words = {"rule": " ".join(part for part in (whole, *rules) if part)}
    return words | {key: plain(rule.get(key, "")) for key in ("classes", "source", "licence")}


def plain(value: Any) -> str:
    """Any value of a protocol as words; URLs without their scheme, so that none is fetched."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("https://", "").replace("http://", "")
