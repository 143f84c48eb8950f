"""ShiftReport: figures with their protocol -> terminal table, JSON, trade-off picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cfmask.errors import InputError, visible
from cfmask.evaluation.figures import MEAN, Curve, Difference, Fit, Row
from cfmask.evaluation.metrics import described
from cfmask.files import read_json, write_text, write_whole
from cfmask.reporting.escapes import drawing, drawn
from cfmask.reporting.stored_report import report_parts

# Below this p-value an accuracy is marked as different.
LEVEL = 0.05


@dataclass(frozen=True)
class ShiftReport:
    """Figures and the protocol they were taken by.

    Attributes:
        rows: the figures.
        protocol: what a reader needs to know to compare them.
        reference: name of the in-distribution set, if there is one.
        details: model -> set -> counts behind the figures. "classes" holds "names", "correct" and
            "total" of the classes that the set has; "groups" the same of its groups, if it has
            any; "bins" holds "count", "confidence" (sum) and "correct" of 15 equal-width bins of
            confidence.
        differences: every other model against the first, on every set; after that, against the
            one that it was tuned from, where that is another.
        fits: lines that effective robustness is held against.
        curves: WiSE-FT curves.
        run: versions, hardware, processes, images, seconds, images per second, command or config.
    """

    rows: list[Row] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    details: dict[str, dict[str, dict[str, dict[str, list[Any]]]]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def row(self, model: str, shift: str, metric: str = "accuracy") -> Row:
        """The figure of a model on a set or combination.

        Args:
            model: name of its row.
            shift: name of the set, which may lack its family if one family alone has such a set.
            metric: its name.

        Raises:
            KeyError: it is not there, or several families have such a set.
        """
        own = {row.shift: row for row in self.of(metric) if row.model == model}
        alike = [name for name in own if shift in (name, name.partition("/")[2])]
        if shift in own:
            return own[shift]
        if len(alike) > 1:
            raise KeyError(f"{metric} of {model} on {shift}: {' or '.join(alike)}")
        for name in alike:
            return own[name]
        raise KeyError(f"{metric} of {model} on {shift}")

    def value(self, model: str, shift: str, metric: str = "accuracy") -> float:
        """Value of `row`; a KeyError if it is not there."""
        return self.row(model, shift, metric).value

    def of(self, metric: str) -> list[Row]:
        """All rows of a metric."""
        return [row for row in self.rows if row.metric == metric]

    def short(self, shift: str) -> str:
        """Name of a set as tables show it: without its family, where the reference has the same.

        Where there is no reference the first set stands for it. Sets of other families keep
        theirs, so that no two columns have one name.
        """
        home = self.reference or next(iter(self.protocol.get("sets", {})), "")
        family, _, name = shift.partition("/")
        alone = name and family == home.partition("/")[0]
        return name if alone and all(row.shift != name for row in self.rows) else shift

    @property
    def models(self) -> list[str]:
        """Names of the models, in order."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def incomplete(self) -> list[str]:
        """Names of the sets that are not the published ones.

        Their number of images or classes is another, or some images could not be read.
        """
        sets = self.protocol.get("sets", {})
        return [
            name
            for name, rule in sets.items()
            if not rule.get("size", {}).get("complete", True) or rule.get("unreadable")
        ]

    def columns(self, metric: str = "accuracy") -> list[str]:
        """Sets and combinations that tables show: no parts of large collections."""
        sets = self.protocol.get("sets", {})
        names = dict.fromkeys(row.shift for row in self.of(metric))
        return [name for name in names if not sets.get(name, {}).get("part_of")]

    def baseline(self, model: str) -> str | None:
        """The row that a model's accuracies are marked against: its starting point, or the first.

        None for the first itself, and for models that are compared with none.
        """
        firsts = [pair.first for pair in self.differences if pair.second == model]
        return firsts[-1] if firsts else None

    def differs(self, row: Row) -> bool:
        """Whether an accuracy differs from the baseline's by more than chance (McNemar)."""
        against = (self.baseline(row.model), row.model, row.shift)
        return row.metric == "accuracy" and any(
            (d.first, d.second, d.shift) == against and d.p_value < LEVEL for d in self.differences
        )

    def against(self) -> str:
        """What a mark of `differs` says: from whom, and where several, which rows from whom."""
        rows: dict[str, list[str]] = {}
        for model in dict.fromkeys(row.model for row in self.of("accuracy") if self.differs(row)):
            rows.setdefault(self.baseline(model) or "", []).append(model)
        if len(rows) == 1:
            return f"differs from {next(iter(rows))}"
        return "differs from " + " or ".join(
            f"{first} (in {', '.join(models)})" for first, models in rows.items()
        )

    def worst_classes(self, model: str, shift: str, count: int = 5) -> list[tuple[str, int, int]]:
        """Name, right ones and images of the classes with the lowest accuracy, lowest first."""
        classes = self.details[model][shift].get("classes", {})
        rows = list(zip(*(classes.get(key, []) for key in ("names", "correct", "total"))))
        return sorted(rows, key=lambda row: row[1] / row[2])[:count]

    def save(self, path: Path) -> None:
        """Write as JSON; an older file is replaced only when done."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> ShiftReport:
        """Read what `save` wrote, or what an older version did.

        Raises:
            InputError: no such file, or another kind of file.
        """
        content = read_json(path)
        try:
            return cls(**report_parts(content))
        except ValueError as error:
            raise InputError(f"Expected a report in {path}, but {error}.") from error

    def table(self, metric: str = "accuracy") -> Table:
        """Models by sets: a figure in percent (`nll`: in nats), below it its 95 % interval."""
        title, caption = described(metric, self.protocol).heading, self._caption(metric)
        table = Table(title=_plain(title), caption=_plain(caption), show_lines=True)
        table.add_column("model")
        shifts = self.columns(metric)
        for shift in shifts:
            marks = "*" * (shift in self.incomplete) + " (ID)" * (shift == self.reference)
            table.add_column(_plain(self.short(shift) + marks), justify="right")
        for model in dict.fromkeys(row.model for row in self.of(metric)):
            cells = {row.shift: row for row in self.of(metric) if row.model == model}
            table.add_row(self._label(model), *(self._cell(cells.get(s)) for s in shifts))
        return table

    def _label(self, model: str) -> Text:
        """A model's name, marked if it was chosen out of a curve that was asked for."""
        chosen = {curve.chosen for curve in self.curves if len(curve.models) > 3}
        mark = visible(f"chosen by {self.short(self.reference or '')}")
        return _two_lines(model, mark if model in chosen else "")

    def _cell(self, row: Row | None) -> Text:
        if row is None:
            return Text()
        shown = described(row.metric, self.protocol).text
        text = shown(row.value) + "†" * self.differs(row)
        if row.low is None or row.high is None:
            return Text(text)
        return _two_lines(text, f"{shown(row.low)}–{shown(row.high)}")

    def _caption(self, metric: str) -> str:
        lines = ["Below a figure: its 95 % interval."]
        if any(self.differs(row) for row in self.of(metric)):
            lines.append(f"† {self.against()} (McNemar's exact test, p < {LEVEL}).")
        if set(self.columns(metric)) & set(self.incomplete):
            lines.append(
                "* INCOMPLETE: not the published number of images or classes, or unreadable images."
            )
        return " ".join(lines)

    def plot_trade_off(self, path: Path) -> bool:
        """Draw accuracy in distribution against the mean under shift, one point a model.

        Returns:
            False if there is no reference set or no mean to draw.
        """
        points = list(self._points())
        if not points:
            return False
        with drawing():
            figure = self._trade_off(points)
            write_whole(path, lambda file: figure.savefig(file, dpi=130, format="png"))
        return True

    def _trade_off(self, points: Sequence[tuple[str, Row, Row]]) -> Any:
        """A figure with one point a model."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, x, y in points:
            axes.errorbar(
                100 * x.value,
                100 * y.value,
                xerr=_reach(x),
                yerr=_reach(y),
                fmt="o",
                capsize=3,
                label=drawn(name),
            )
        wise = sorted((x.value, y.value) for _, x, y in points)
        low = min(v for pair in wise for v in pair) * 100 - 5
        high = max(v for pair in wise for v in pair) * 100 + 5
        axes.plot([low, high], [low, high], ":", color="grey", label="y = x")
        axes.set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel=f"in distribution ({drawn(self.short(self.reference or ''))}), %",
            ylabel=f"{MEAN}, %",
            title="In distribution against under shift",
        )
        axes.legend()
        return figure

    def _points(self) -> Iterable[tuple[str, Row, Row]]:
        for model in self.models:
            cells = {row.shift: row for row in self.of("accuracy") if row.model == model}
            if self.reference in cells and MEAN in cells:
                yield model, cells[self.reference], cells[MEAN]


def _plain(text: str) -> Text:
    """Text in which nothing is taken for markup."""
    return Text(visible(text))


def _two_lines(text: str, below: str) -> Text:
    """A cell with a fainter second line, if there is any."""
    return Text.assemble(visible(text), *([("\n" + below, "dim")] if below else []))


def _reach(row: Row) -> list[list[float]]:
    """How far the interval reaches below and above the figure, in percent."""
    low = row.value if row.low is None else row.low
    high = row.value if row.high is None else row.high
    # A mean of perfect accuracies may be above 1 by the last bit.
    return [[max(0.0, 100 * (row.value - low))], [max(0.0, 100 * (high - row.value))]]
