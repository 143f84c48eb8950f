"""Results: the content of a report, and its JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cfmask.errors import InputError
from cfmask.evaluation.figures import MEAN, Curve, Difference, Fit, Front, Gap, Row, Spread
from cfmask.evaluation.stored_report import report_parts
from cfmask.files import read_json, write_text

# Below this p-value an accuracy is marked as different.
LEVEL = 0.05

R = TypeVar("R", bound="Results")


@dataclass(frozen=True)
class Results:
    """The content of a report: figures and the protocol by which they were taken.

    Attributes:
        rows: the figures.
        protocol: the rules by which they can be compared.
        reference: name of the in-distribution set; None without one.
        details: model -> set -> counts behind the figures. "classes" holds "names", "correct" and
            "total" of the classes that the set has; "groups" the same of its groups, if it has
            any; "bins" holds "count", "confidence" (sum) and "correct" of 15 equal-width bins of
            confidence. Of unknown classes it is the curve "oscr", with "fpr" and "ccr". Of a
            ladder, by its name, "scales" holds "scale", "correct" and "total", and "failures"
            "scale" and "count" of trajectories by failure point.
        differences: every other model against the first, on every set; then against the one that
            it was tuned from, if that is another.
        fits: lines of effective robustness.
        curves: WiSE-FT curves.
        run: date, versions, hardware, processes, images, seconds, images per second, configs, and
            "runs": in words, what each run was.
        training: run -> metric -> [step, value] of what it logged.
        spreads: means and standard deviations over runs that differ by their seed alone.
        fronts: accuracy under shift at equal in-distribution accuracy, of several curves.
        gaps: what lies between each two fronts.
    """

    rows: list[Row] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    details: dict[str, dict[str, dict[str, dict[str, list[Any]]]]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    training: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    spreads: list[Spread] = field(default_factory=list)
    fronts: list[Front] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def row(self, model: str, shift: str, metric: str = "accuracy") -> Row:
        """The figure of a model on a set or combination.

        Args:
            model: name of its row.
            shift: name of the set, without its family if no other family has such a set.
            metric: its name.

        Raises:
            KeyError: it is not there, or several families have such a set.
        """
        own = {row.shift: row for row in self.of(metric) if row.model == model}
        if shift in own:
            return own[shift]
        alike = [name for name in own if name.partition("/")[2] == shift]
        if len(alike) != 1:
            several = f": {' or '.join(alike)}" if alike else ""
            raise KeyError(f"{metric} of {model} on {shift}{several}")
        return own[alike[0]]

    def value(self, model: str, shift: str, metric: str = "accuracy") -> float:
        """Value of `row`; a KeyError if it is not there."""
        return self.row(model, shift, metric).value

    def of(self, metric: str) -> list[Row]:
        """All rows of a metric."""
        return [row for row in self.rows if row.metric == metric]

    def cells(self, metric: str = "accuracy") -> dict[tuple[str, str], Row]:
        """All rows of a metric by model and set or combination."""
        return {(row.model, row.shift): row for row in self.of(metric)}

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """What the protocol says of each set, by its name."""
        found: dict[str, dict[str, Any]] = self.protocol.get("sets", {})
        return found

    def short(self, shift: str) -> str:
        """Name of a set in tables: without its family if that is the reference's.

        Without a reference, the first set takes its part. No two columns get one name.
        """
        home = self.reference or next(iter(self.sets), "")
        family, _, name = shift.partition("/")
        alone = name and family == home.partition("/")[0]
        return name if alone and all(row.shift != name for row in self.rows) else shift

    @property
    def models(self) -> list[str]:
        """Names of the models in the order of the rows; those of a curve by alpha."""
        names = list(dict.fromkeys(row.model for row in self.rows))
        for curve in self.curves:
            own = [name for name in curve.models if name in names]
            for place, name in zip(sorted(map(names.index, own)), own):
                names[place] = name
        return names

    @property
    def incomplete(self) -> list[str]:
        """Names of the sets of another size than published, or with unreadable images."""
        return [
            name
            for name, rule in self.sets.items()
            if not rule.get("size", {}).get("complete", True) or rule.get("unreadable")
        ]

    def columns(self, metric: str = "accuracy") -> list[str]:
        """Sets and combinations in tables, the reference first, without parts of collections."""
        names = list(dict.fromkeys(row.shift for row in self.of(metric)))
        names.sort(key=lambda name: name != self.reference)
        return [name for name in names if not self.sets.get(name, {}).get("part_of")]

    @property
    def shift_sets(self) -> list[str]:
        """Sets in tables that are not in distribution."""
        clean = {name for name, rule in self.sets.items() if rule.get("in_distribution")}
        return [name for name in self.columns() if name in self.sets and name not in clean]

    @property
    def under_shift(self) -> str | None:
        """The mean of shifts, or the only shift set; None without one."""
        names = self.shift_sets
        return MEAN if MEAN in self.columns() else names[0] if len(names) == 1 else None

    def baseline(self, model: str) -> str | None:
        """The row that a model is compared with: its starting point, or the first row.

        None for the first itself, and for models without a comparison.
        """
        firsts = [pair.first for pair in self.differences if pair.second == model]
        return firsts[-1] if firsts else None

    def differs(self, row: Row) -> bool:
        """Whether an accuracy differs significantly from the baseline's (exact McNemar test)."""
        if row.metric != "accuracy":
            return False
        own = [d for d in self.differences if (d.second, d.shift) == (row.model, row.shift)]
        first = self.baseline(row.model) if own else None
        return any(d.first == first and d.p_value < LEVEL for d in own)

    def against(self) -> str:
        """Meaning of the mark of `differs`: from which row, and if from several, whose."""
        rows: dict[str, list[str]] = {}
        for model in dict.fromkeys(row.model for row in self.of("accuracy") if self.differs(row)):
            rows.setdefault(self.baseline(model) or "", []).append(model)
        if len(rows) == 1:
            return f"differs from {next(iter(rows))}"
        return "differs from " + " or ".join(
            f"{first} (in {', '.join(models)})" for first, models in rows.items()
        )

    def worst_classes(
        self, model: str, shift: str, count: int | None = 5
    ) -> list[tuple[str, int, int]]:
        """Name, correct and total of the classes of lowest accuracy, lowest first; None for all."""
        classes = self.details[model][shift].get("classes", {})
        rows = list(zip(*(classes.get(key, []) for key in ("names", "correct", "total"))))
        return sorted(rows, key=lambda row: row[1] / row[2])[:count]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what `save` wrote, or what an older version did.

        Raises:
            InputError: no such file, or another kind of file.
        """
        content = read_json(Path(path))
        try:
            return cls(**report_parts(content))
        except ValueError as error:
            raise InputError(f"Expected a report in {path}, but {error}.") from error
