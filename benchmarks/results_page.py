"""The results page from its figures: ``python benchmarks/results_page.py``.

Every file of benchmarks/results, as `cfmask compare` writes it to results.csv for the plan of the
same name, also packed by gzip, becomes a part of docs/results.md between the lines
`<!-- figures -->` and `<!-- end -->`: accuracies over seeds, fronts at equal accuracy in
distribution, gaps, and what made the figures.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from jsonargparse import auto_cli

from cfmask.comparison.plan import Plan
from cfmask.evaluation.figures import Row
from cfmask.evaluation.fronts import Line, fronts_of, gaps_against
from cfmask.reporting.report import ShiftReport

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures -->\n", "<!-- end -->\n"
# The start, where α is 0, is the same model for all methods.
START, ALPHAS = "0", ("0.5", "1")
Lines = Sequence[dict[str, str]]


def lines_of(file: Path) -> list[dict[str, str]]:
    """The lines of a file of figures."""
    packed = file.suffix == ".gz"
    with gzip.open(file, "rt", encoding="utf-8") if packed else file.open() as stream:
        return list(csv.DictReader(stream))


def against_of(file: Path) -> list[str]:
    """The methods with which alone the plan compares the others."""
    return Plan.read(ROOT / "benchmarks" / "plans" / f"{name_of(file)}.yaml").against


def name_of(file: Path) -> str:
    """Name of a plan by its figures."""
    return file.name.partition(".")[0]


def report_of(lines: Lines, against: Sequence[str] = ()) -> ShiftReport:
    """The figures as a report with fronts; its reference is the set of the first line."""
    rows, curves = [], dict[tuple[str, str], list[str]]()
    for line in lines:
        model = f"{line['method']}, seed {line['seed']}, α {line['alpha']}"
        rows.append(Row(model, line["set"], "accuracy", float(line["accuracy"])))
        models = curves.setdefault((line["method"], line["seed"]), [])
        models += [model] * (model not in models)
    report = ShiftReport(rows, {}, lines[0]["set"])
    drawn = [Line(method, seed, models) for (method, seed), models in curves.items()]
    fronts, gaps = fronts_of(report, drawn, {})
    return replace(report, fronts=fronts, gaps=gaps_against(gaps, against) if against else gaps)


def accuracies(lines: Lines) -> Iterator[str]:
    """Lines of a Markdown table: mean ± standard deviation over seeds of every set."""
    sets = list(dict.fromkeys(line["set"] for line in lines))
    yield f"| method | α | {' | '.join(name.rpartition('/')[2] for name in sets)} |"
    yield f"|---|---|{'---|' * len(sets)}"
    yield _row("start", START, sets, [line for line in lines if line["alpha"] == START])
    for method in dict.fromkeys(line["method"] for line in lines):
        for alpha in ALPHAS:
            own = [line for line in lines if (line["method"], line["alpha"]) == (method, alpha)]
            yield _row(method, alpha, sets, own)


def _row(method: str, alpha: str, sets: Sequence[str], own: Lines) -> str:
    cells = [[float(o["accuracy"]) for o in own if o["set"] == name] for name in sets]
    return f"| {method} | {alpha} | {' | '.join(map(spread, cells))} |"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation in per cent."""
    text = f"{100 * fmean(values):.1f}"
    return f"{text} ± {100 * stdev(values):.1f}" if len(values) > 1 else text


def section(file: Path) -> str:
    """The part of a file."""
    lines = lines_of(file)
    report = report_of(lines, against_of(file))
    tables = [table.markdown() for table in report.front_tables()]
    first = lines[0]
    seeds = ", ".join(sorted({line["seed"] for line in lines}))
    said = [
        f"Seeds {seeds}; {first['total']} images a set; α is the weight of the tuned model.",
        f"Made on {first['device']}; {first['versions']}; protocol {first['protocol']}.",
        "The first run:",
        f"`{first['command']}`; those of all others stand in `benchmarks/results/{file.name}`.",
    ]
    return "\n\n".join(
        [f"## {name_of(file)}", "\n".join(said), "\n".join(accuracies(lines)), *tables]
    )


def made(page: str, results: Path) -> str:
    """The text of the page with its figures made anew."""
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    parts = [section(file) for file in sorted(results.glob("*.csv*"))]
    return head + BEGIN + "\n" + "\n\n".join(parts) + "\n\n" + END + tail


def write(page: Path = ROOT / "docs" / "results.md") -> None:
    """Make the page anew.

    Args:
        page: Markdown file with both lines.
    """
    page.write_text(
        made(page.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), "utf-8"
    )


if __name__ == "__main__":
    auto_cli(write, as_positional=False)
