"""Collected: the finished runs of a plan -> the setting of each method, one report, tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cfmask.checkpoint import WEIGHTS
from cfmask.comparison.compare import compare
from cfmask.comparison.plan import Plan, Run
from cfmask.comparison.sources import short_name
from cfmask.errors import InputError
from cfmask.evaluation.fronts import holm, paired_t
from cfmask.evaluation.metrics import Metric
from cfmask.files import read_json, write_text
from cfmask.reporting.escapes import csv_cell
from cfmask.reporting.front_figures import front_tables
from cfmask.reporting.rendering import BELOW, Cell, Column, Table
from cfmask.reporting.report import ShiftReport
from cfmask.reporting.tables import spread_table, table_of
from cfmask.runs.record import training_curves
from cfmask.runs.summary import SUMMARY

VALIDATION = "val/accuracy"
POINTS, SHARE = Metric("Difference", unit="points", signed=True), Metric("Share")
RESULTS, TABLES = "results.csv", "comparison.md"
FIELDS = (
    *("method", "setting", "seed", "alpha", "set", "accuracy", "correct", "total"),
    *("protocol", "device", "versions", "command"),
)


def is_done(run: Run) -> bool:
    """Whether a run lies in its folder finished, with these very words."""
    note = run.folder / DONE
    return (run.folder / WEIGHTS).is_file() and note.is_file() and read_json(note) == [*run.words]


DONE = "plan.json"


def mark_done(run: Run) -> None:
    """Note that a run has ended well."""
    write_text(run.folder / DONE, json.dumps(run.words) + "\n")


def validation_of(run: Run) -> float:
    """Best accuracy of a finished run on its validation images, in [0, 1].

    Raises:
        InputError: the run has no log of it.
    """
    curve = training_curves(run.folder).get(VALIDATION)
    if not curve:
        raise InputError(
            f"Expected {VALIDATION} in the log of {run.folder}, by which a setting is chosen, but "
            "there is none; keep csv among its loggers."
        )
    return max(value for _, value in curve)


def chosen_of(plan: Plan) -> tuple[dict[str, int], dict[str, list[float]]]:
    """The setting of each method with the best mean validation accuracy, the first of equal ones.

    Returns:
        Place of the setting by method, and the means of all settings; of a single setting none.
    """
    if plan.count == 1:
        return dict.fromkeys(plan.methods, 0), {}
    scores: dict[str, list[float]] = {}
    for method in plan.methods:
        own = [run for run in plan.tuning() if run.method == method]
        scores[method] = [
            fmean(validation_of(run) for run in own if run.setting == k) for k in range(plan.count)
        ]
    return {method: int(np.argmax(own)) for method, own in scores.items()}, scores


def collected(plan: Plan) -> ShiftReport:
    """One report of the chosen runs, in the folder of the plan, with its tables and results.

    Raises:
        InputError: runs that are not finished.
    """
    _check_done(plan, plan.tuning())
    chosen, scores = chosen_of(plan)
    runs = plan.reported(chosen)
    _check_done(plan, runs)
    folder = Path(plan.out) / "report"
    against = [_front(plan, method, chosen[method]) for method in plan.against]
    how: dict[str, Any] = {**plan.evaluated, "against": against}
    report = compare([str(run.folder) for run in runs], str(folder), **how)
    write_text(Path(plan.out) / RESULTS, results_csv(report, runs))
    made = [table.markdown() for table in tables_of(report, runs, chosen, scores, plan.against)]
    write_text(Path(plan.out) / TABLES, "\n\n".join(made) + "\n")
    return report


def _front(plan: Plan, method: str, setting: int) -> str:
    """Name of a method's front in the report: that of its only run has the seed."""
    name = plan.name(method, setting)
    return name if len(plan.seeds) > 1 else f"{name}-{plan.seeds[0]}"


def _check_done(plan: Plan, runs: Sequence[Run]) -> None:
    left = [run.folder.name for run in runs if not is_done(run)]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise InputError(
            f"Expected all runs of the plan to be finished, but {len(left)} of {len(runs)} are "
            f"not: {', '.join(left[:5])}{more}; go on without --collect."
        )


def tuned_row(run: Run, runs: Sequence[Run]) -> str:
    """Name of the row of a run's tuned model in the report of all runs."""
    name = short_name(str(run.folder), [str(other.folder) for other in runs])
    return f"{name}: tuned" if len(runs) > 1 else "tuned"


def tables_of(
    report: ShiftReport,
    runs: Sequence[Run],
    chosen: Mapping[str, int],
    scores: Mapping[str, Sequence[float]],
    against: Sequence[str] = (),
) -> Iterator[Table]:
    """Settings and cost, mean ± sd, paired differences, fronts."""
    yield _costs(runs, chosen, scores)
    spread = spread_table(report)
    yield spread if spread.rows else table_of(report)
    yield from [_differences(report, runs, against)] * (len({run.seed for run in runs}) > 1)
    yield from front_tables(report)


def _costs(
    runs: Sequence[Run], chosen: Mapping[str, int], scores: Mapping[str, Sequence[float]]
) -> Table:
    """What each method was and cost, as its runs' summaries count it."""
    heads = ("setting", "validation of the settings, %", "steps", "passes", "TFLOPs of a run")
    rows = []
    for method, place in chosen.items():
        first = next(run for run in runs if run.method == method)
        facts = read_json(first.folder / SUMMARY)
        flops = facts.get("flops")
        rows.append(
            [
                Cell(method),
                Cell(str(place + 1)),
                Cell(" / ".join(SHARE.text(share) for share in scores.get(method, []))),
                Cell(f"{facts.get('steps', 0):,}"),
                Cell("" if facts.get("passes") is None else f"{facts['passes']:g}"),
                Cell("" if flops is None else f"{flops / 1e12:.3g}"),
            ]
        )
    columns = [Column("method", True), *(Column(head) for head in heads)]
    return Table("Settings chosen on validation images in distribution, and cost", columns, [rows])


def _differences(report: ShiftReport, runs: Sequence[Run], against: Sequence[str]) -> Table:
    """Differences of tuned models paired by seed: mean, t interval, Holm's p."""
    sets = [name for name in (report.reference, report.under_shift) if name]
    rows = {(run.method, run.seed): tuned_row(run, runs) for run in runs}
    methods, seeds = list(dict.fromkeys(m for m, _ in rows)), sorted({s for _, s in rows})
    pairs = list(combinations(methods, 2))
    if against:
        others = [method for method in methods if method not in against]
        pairs = [*combinations(against, 2), *product(against, others)]
    found = [
        [report.value(rows[b, s], name) - report.value(rows[a, s], name) for s in seeds]
        for a, b in pairs
        for name in sets
    ]
    tests = [paired_t(values) for values in found]
    adjusted = iter(holm([p for *_, p in tests]))
    cells = iter(
        Cell(
            POINTS.text(fmean(values)),
            below=f"{POINTS.text(low)} to {POINTS.text(high)}; p {next(adjusted):.3f}",
        )
        for values, (low, high, _) in zip(found, tests)
    )
    names = (Column(report.short(name)) for name in sets)
    columns = [Column("method", True), Column("against", True), *names]
    lines = [[Cell(b), Cell(a), *(next(cells) for _ in sets)] for a, b in pairs]
    title = f"Tuned models, differences paired by {len(seeds)} seeds, in points"
    notes = [f"{BELOW}: 95 % t interval, and p by Holm's correction over this table."]
    return Table(title, columns, [lines], notes)


def results_csv(report: ShiftReport, runs: Sequence[Run]) -> str:
    """A line for each accuracy of each model on a run's curve, with what it was made by.

    The protocol stands for its rules by a checksum: figures of one checksum may be compared.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    rules = {name: value for name, value in report.protocol.items() if name != "models"}
    protocol = sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]
    versions = " ".join(f"{name} {v}" for name, v in report.run.get("versions", {}).items())
    made_by = (protocol, report.run.get("hardware", ""), versions)
    curves = {curve.models[-1]: curve for curve in report.curves}
    for run in runs:
        curve = curves[tuned_row(run, runs)]
        command = " ".join(["cfmask train", *run.words])
        for alpha, model in zip(curve.alphas, curve.models):
            for row in report.of("accuracy"):
                if row.model == model:
                    counts = ("" if n is None else n for n in (row.correct, row.total))
                    figures = (f"{alpha:g}", row.shift, f"{row.value:.6f}", *counts)
                    line = (run.method, run.setting + 1, run.seed, *figures, *made_by, command)
                    writer.writerow([csv_cell(cell) for cell in line])
    return stream.getvalue()
