"""Findings: what the missingness lab has found, as a file, tables, pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cfmask.files import write_text
from cfmask.missingness import sections
from cfmask.missingness.curves import Curve
from cfmask.missingness.sections import SHOWN, CurveRow, Group
from cfmask.reporting import panels
from cfmask.reporting.rendering import Cell, Column, Table, environment

# Titles of the tables.
AREAS = "Mean over the degrees of removal, 0 to 1"
SHAPE = "Accuracy with the object hidden, and with as much elsewhere"
LIME = "LIME against the mask of the object, and the model without the highest segments"
LINEARITY = "Features of an image against the sum of its patches'"
SIZES = "Change of the cosine of two images' features when they are smaller"
WINDOWS = "Cosine of the features of a window and of the same window moved"
# What a table would have no room for; charts and the file have it.
DRAWN = ("classes", "ablation")


@dataclass
class Findings:
    """All that the lab has found.

    Attributes:
        protocol: how: images, ways, seed, versions.
        removal: removal curves.
        tables: other measures, by title: rows of figures by the names of their columns.
    """

    protocol: dict[str, Any]
    removal: list[CurveRow] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def save(self, folder: Path, classes: Sequence[str] = ()) -> list[Path]:
        """Write `missingness.json`, `missingness.html` and the pictures; gives all paths.

        Args:
            folder: where they go.
            classes: that have bars of their shape bias; see `cfmask.missingness.sections.shape`.
        """
        files = {"missingness.json": json.dumps(asdict(self), indent=1)}
        files["missingness.html"] = self._page(classes)
        for name, text in files.items():
            write_text(folder / name, text)
        made = [folder / name for name in files]
        for number, (_, groups) in enumerate(self._by_model(classes)):
            start = f"{number}-" if len(self._models) > 1 else ""
            for _, group in groups:
                made.append(folder / f"{start}{group.name}.png")
                panels.save(made[-1], group.panels, self._ways, group.columns)
        return made

    def printed(self) -> Iterator[Table]:
        """Tables for a terminal or a page."""
        if self.removal:
            yield _areas(self.removal)
        for title, rows in self.tables.items():
            if rows:
                yield _table(title, rows)

    @property
    def _models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.removal))

    @property
    def _ways(self) -> list[str]:
        return list(dict.fromkeys(row.hiding for row in self.removal))

    def _by_model(self, classes: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, Group]]]]:
        """Each model with its groups of charts, and the section that each belongs to."""
        for model in self._models:
            own = {
                title: [row for row in rows if row["model"] == model]
                for title, rows in self.tables.items()
            }
            curves, ways = [row for row in self.removal if row.model == model], self._ways
            groups = [("removal", group) for group in sections.removal(curves, ways)]
            if own.get(SHAPE):
                groups += [("shape", g) for g in sections.shape(own[SHAPE], ways, classes)]
            if own.get(LIME):
                groups += [("lime", group) for group in sections.lime(own[LIME], ways)]
            if own.get(LINEARITY):
                groups += [("linearity", g) for g in sections.linearity(own[LINEARITY], ways)]
            if own.get(SIZES):
                parts = sections.concordance(own[SIZES], own[WINDOWS], ways)
                groups += [("concordance", group) for group in parts]
            yield model, groups

    def _page(self, classes: Sequence[str]) -> str:
        drawn: dict[str, list[tuple[str, list[tuple[str, Markup]]]]] = {}
        for model, groups in self._by_model(classes):
            for section, group in groups:
                words = [model] if len(self._models) > 1 else []
                words += [SHOWN[group.name][0]] if section == "removal" else []
                made = [(panel.title, Markup(panels.svg(panel))) for panel in group.panels]
                drawn.setdefault(section, []).append((": ".join(words), made))
        content = [
            {"name": k, "title": sections.NAMES[k], "words": sections.WORDS[k], "charts": found}
            for k, found in drawn.items()
        ]
        page = environment().get_template("missingness.html")
        return page.render(
            models=self._models,
            about=list(_about(self.protocol)),
            sections=content,
            legend=panels.legend(self._ways),
            tables=list(self.printed()),
        )


def _about(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured, in words."""
    for name, facts in protocol["models"].items():
        words = f"{name} – {facts['images']:,} images, relevant segments by {facts['relevance']}"
        yield "model", words
    if "data" in protocol:
        yield "data", str(protocol["data"])
    yield "intervals", f"95 %, by {protocol['samples']:,} bootstrap samples of the images"


def _areas(rows: Sequence[CurveRow]) -> Table:
    """Areas of all curves with their intervals."""
    measures = list(rows[0].curves)
    columns = [Column(head, words=True) for head in ("model", "segments", "order", "hidden by")]
    columns += [Column(SHOWN[measure][0]) for measure in measures]
    cells = [
        [
            *map(Cell, (row.model, row.segments, row.order, row.hiding)),
            *(_area(row.curves[m], SHOWN[m][1]) for m in measures),
        ]
        for row in rows
    ]
    return Table(AREAS, columns, [cells])


def _area(curve: Curve, unit: float) -> Cell:
    digits = 1 if unit > 1 else 2
    # An entropy of nothing is some 1e-7 below 0.
    value, low, high = (round(unit * part, digits) + 0.0 for part in curve.area)
    return Cell(f"{value:.{digits}f}", below=f"{low:.{digits}f}–{high:.{digits}f}")


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of figures as they are, with three digits after the point and intervals below."""
    heads = [head for head in dict.fromkeys(k for row in rows for k in row) if head not in DRAWN]
    columns = [Column(head, words=isinstance(rows[0][head], str)) for head in heads]
    return Table(title, columns, [[[_cell(row.get(head)) for head in heads] for row in rows]])


def _cell(value: Any) -> Cell:
    if isinstance(value, list | tuple):
        middle, low, high = (f"{part:.3f}" for part in value)
        return Cell(middle, below=f"{low}–{high}")
    return Cell(
        "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    )
