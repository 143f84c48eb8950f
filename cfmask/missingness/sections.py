"""Sections: what the lab has found -> charts, in the sections of its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfmask.missingness.curves import Curve
from cfmask.missingness.lime_quality import ABLATED, TOP
from cfmask.reporting.panels import Panel, Series

Rows = Sequence[Mapping[str, Any]]
# Name of a measure -> what it is called in charts, and the factor to its unit there.
SHOWN = {
    "accuracy": ("accuracy, %", 100.0),
    "kept": ("kept predictions, %", 100.0),
    "entropy": ("entropy of the classes, nats", 1.0),
    "similarity": ("WordNet similarity", 1.0),
}
TITLES = {"random": "at random", "most": "most relevant first", "least": "least relevant first"}
# How many classes have bars, of those that a ranking has at its top and at its bottom: the choice
# of arXiv 2211.14646.
RANKED, BARS = (30, 10), (10, 4)
# A class of so many images has none.
FEW = 10
PERCENT = (0, 100)


@dataclass(frozen=True)
class Group:
    """Charts of one picture.

    Attributes:
        name: of its file.
        panels: the charts.
        columns: beside each other in the picture.
    """

    name: str
    panels: Sequence[Panel]
    columns: int


@dataclass(frozen=True)
class CurveRow:
    """The curves of a model by one segmentation, order and way of hiding."""

    model: str
    segments: str
    order: str
    hiding: str
    curves: Mapping[str, Curve]


def removal(rows: Sequence[CurveRow], ways: Sequence[str]) -> Iterator[Group]:
    """Curves of a model by degree of removal: a picture a measure, a panel an order."""
    orders = list(dict.fromkeys(row.order for row in rows))
    for measure in rows[0].curves:
        label, unit = SHOWN[measure]
        panels = []
        for kind in dict.fromkeys(row.segments for row in rows):
            for order in orders:
                own = [r for r in rows if (r.segments, r.order) == (kind, order)]
                lines = [_line(ways.index(r.hiding), r.curves[measure], unit) for r in own]
                degrees = [100 * k / (len(lines[0].y) - 1) for k in range(len(lines[0].y))]
                limits = PERCENT if unit > 1 else (0, None)
                title = f"{kind}, {TITLES[order]}"
                panels.append(Panel(title, label, degrees, lines, "hidden, %", limits))
        yield Group(measure, panels, len(orders))


def _line(number: int, curve: Curve, unit: float) -> Series:
    parts = ([unit * value for value in p] for p in (curve.values, curve.low, curve.high))
    return Series(number, *parts)


def shape(rows: Rows, ways: Sequence[str], classes: Sequence[str]) -> Iterator[Group]:
    """Bars of a model with the object hidden and with as much elsewhere: overall and by class.

    Args:
        rows: of `shape_bias`.
        ways: names of the ways of hiding, by their numbers.
        classes: that have bars; empty for those of `telling`.
    """
    halves = "object hidden", "as much elsewhere"
    overall = [_bars(ways.index(r["hidden by"]), [r[h] for h in halves], 100) for r in rows]
    ratios = [r for r in rows if r["ratio"] is not None]
    panels = [Panel("all images", "still right, %", halves, overall, limits=PERCENT)]
    if ratios:
        bars = [_bars(ways.index(r["hidden by"]), [r["ratio"]], 1) for r in ratios]
        panels.append(Panel("object / elsewhere", "ratio", ["ratio"], bars))
    found = {r["hidden by"]: r["classes"] for r in rows}
    known = next(iter(found.values()))
    shown = [name for name in classes if name in known] or telling(found)
    for k, half in enumerate(halves if shown else ()):
        bars = [
            Series(ways.index(way), [100 * by_class[name][k] for name in shown])
            for way, by_class in found.items()
        ]
        panels.append(Panel(f"{half}, by class", "still right, %", shown, bars, limits=PERCENT))
    yield Group("shape", panels, 2)


def telling(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Classes in which layer masking differs most, and least, from black and from grey.

    A ranking is by how much more of the answers a colour keeps with the object hidden, less how
    much more it keeps with as much hidden elsewhere. Without layer masking or a colour, the first
    classes.

    Source: arXiv 2211.14646 and its code.

    Args:
        found: by way of hiding and class, both shares and the number of images.
    """
    colours = [found[way] for way in ("black", "grey") if way in found]
    if "removed" not in found or not colours:
        return list(next(iter(found.values())))[: sum(BARS)]
    layer = found["removed"]
    names = [name for name, row in layer.items() if row[2] > FEW]

    def gain(colour: Mapping[str, Sequence[float]], name: str) -> float:
        (a, b, _), (c, d, _) = colour[name], layer[name]
        return (a - c) - (b - d)

    rankings = [sorted(names, key=lambda n, c=c: -gain(c, n)) for c in colours]  # type: ignore[misc]
    most = [n for n in names if all(n in ranking[: RANKED[0]] for ranking in rankings)]
    least = [n for n in names if all(n in ranking[-RANKED[1] :] for ranking in rankings)]
    return list(dict.fromkeys([*most[-BARS[0] :], *least[: BARS[1]]]))


def lime(rows: Rows, ways: Sequence[str]) -> Iterator[Group]:
    """LIME's scores of a model against the mask, and what is right without the highest segments."""
    panels = []
    for kind in dict.fromkeys(row["segments"] for row in rows):
        own = [(ways.index(r["hidden by"]), r) for r in rows if r["segments"] == kind]
        fits = [_bars(k, [r[name] for name in ("coverage", "Jaccard")], 1) for k, r in own]
        wins = [Series(k, [100 * r["highest coverage"]]) for k, r in own]
        lines = [_line(k, Curve(**r["ablation"]), 100) for k, r in own]
        panels += [
            Panel(f"{kind}, against the mask", "", ["coverage", "Jaccard"], fits, "", (None, None)),
            Panel(f"{kind}, best coverage", "images, %", ["win rate"], wins, limits=PERCENT),
            Panel(f"{kind}, without the highest", "right, %", ABLATED, lines, "segments made grey",
                  PERCENT),
        ]  # fmt: skip
    yield Group("lime", panels, 3)


def linearity(rows: Rows, ways: Sequence[str]) -> Iterator[Group]:
    """Features of all patches of a model against those of the image, by side of the patches."""
    sides = sorted({row["patch side"] for row in rows})

    def lines(name: str) -> list[Series]:
        cells = {(r["hidden by"], r["patch side"]): r[name] for r in rows}
        return [_bars(k, [cells[way, side] for side in sides], 1) for k, way in enumerate(ways)]

    share = Series(None, lines("length, share of whole")[0].y)
    named = {
        "distance of the sum": ("relative distance", lines("relative distance"), (0, None)),
        "direction of the sum": ("cosine", lines("cosine"), (None, 1)),
        "length of a patch's features": ("length", [*lines("length, patch"), share], (0, None)),
    }
    panels = [
        Panel(title, unit, sides, series, "side of the patches, px", limits)
        for title, (unit, series, limits) in named.items()
    ]
    yield Group("linearity", panels, 3)


def concordance(sizes: Rows, moved: Rows, ways: Sequence[str]) -> Iterator[Group]:
    """How far features of a model move when the image is made smaller, or a window is moved."""

    def panel(rows: Rows, place: str, figure: str, *words: str) -> Panel:
        places = sorted({row[place] for row in rows})
        cells = {(r["hidden by"], r[place]): r for r in rows}
        series = [
            _bars(k, [cells[way, p][figure] for p in places], 1) for k, way in enumerate(ways)
        ]
        if "cosine of masks" in rows[0]:
            series.append(Series(None, [cells[ways[0], p]["cosine of masks"] for p in places]))
        limits = (0, None) if figure == "change" else (None, 1)
        return Panel(words[0], words[1], places, series, words[2], limits)

    panels = [
        panel(sizes, "image side", "change", "smaller images", "change of cosine", "side, px")
    ]
    for half in sorted({row["half side"] for row in moved}):
        own = [row for row in moved if row["half side"] == half]
        words = f"window of {2 * half} px, moved", "cosine", "moved by, px"
        panels.append(panel(own, "moved by", "cosine", *words))
    yield Group("concordance", panels, 2)


def _bars(number: int, figures: Sequence[Sequence[float]], unit: float) -> Series:
    """Bars, or a line, of figures with both ends of their intervals."""
    y, low, high = ([unit * figure[k] for figure in figures] for k in range(3))
    return Series(number, y, low, high)


# Words above the charts of each section, by its name.
WORDS = {
    "removal": (
        "More and more of each image is hidden. The higher a curve, the less the model answers to "
        "the hole itself; bands are intervals of 95 %."
    ),
    "shape": (
        "Of images that are answered rightly as wholes: how many still are with the object hidden, "
        "and with the same mask moved by half the image. A model that is right without any pixel "
        "of the object answers to the shape of the hole, or to the context."
    ),
    "lime": (
        "LIME's scores by each way of hiding: cosine with how much of the object a segment holds "
        f"(coverage), Jaccard index of the object and the {TOP} highest segments, how often a way "
        "has the best coverage, and the plain model without the highest segments, where lower is "
        "better."
    ),
    "linearity": (
        "Each patch is shown alone. The sum of the patches' features would be those of the image "
        "for a model that only counts what it sees; dotted: an even share of the image's length."
    ),
    "concordance": (
        "How far the cosine of two images' features changes when both are made smaller, and the "
        "cosine of a window's features with those of the same window moved; dotted: of the masks."
    ),
}
NAMES = {
    "removal": "Removal curves",
    "shape": "Shape bias",
    "lime": "LIME",
    "linearity": "Linearity",
    "concordance": "Concordance",
}
