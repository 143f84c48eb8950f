"""Page: a report and pictures of disagreements -> one HTML page that needs no network.

The layout is `page.html` (Jinja, everything escaped); this module gathers what stands in it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from cfmask.errors import visible
from cfmask.evaluation.figures import MEAN, Difference, Fit
from cfmask.evaluation.metrics import Metric
from cfmask.reporting import charts as figures
from cfmask.reporting.disagreement import Disagreement
from cfmask.reporting.report import ShiftReport
from cfmask.reporting.tables import footnotes, grids, heading, incomplete

K = TypeVar("K")
# More models than this cannot be told apart in one picture.
MOST_MODELS = 6
POINTS = Metric("Difference", unit="points", signed=True)
SHARE = Metric("Share")


def as_html(report: ShiftReport, gallery: Sequence[Disagreement] = ()) -> str:
    """The page: tables, charts, pictures and what the run was, in one file.

    Args:
        report: the figures.
        gallery: images on which the first two models disagree, from `disagreements`.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals.update(heading=heading)
    layout = files("cfmask.reporting").joinpath("page.html").read_text(encoding="utf-8")
    styles, sets = drawn_models(report), list(_sets(report))
    content = {
        "firsts": list(dict.fromkeys(d.first for d in report.differences if d.second in styles)),
        "legend": [(m, i, figures.GLYPHS[i]) for m, i in styles.items()],
        "leads": list(_leads(report, styles)),
        "grids": grids(report),
        "partly": incomplete(report),
        "footnotes": footnotes(report, "Below a figure"),
        "scatters": list(_scatters(report, styles)),
        "curves": list(_curves(report)),
        "reliability": list(_reliability(report, styles)),
        "worst": list(_worst(report, styles)),
        "differences": _grouped(_differences(report, styles), _sides),
        "pictures": _grouped(_pictures(gallery), lambda item: item["found"].shift),
        "protocol": list(_sentences(report)),
        "sets": sets,
        "told": [key for key in ("rule", "source", "licence") if any(s[key] for s in sets)],
        "facts": list(_facts(report.run)),
    }
    return environment.from_string(layout).render(report=report, **content)


def _shown(value: Any) -> Any:
    """What stands in the page: text without hidden characters; what is made up already stays."""
    return visible(value, lines=True) if type(value) is str else value


def drawn_models(report: ShiftReport) -> dict[str, int]:
    """Models that have a colour and a marker, with their number.

    All but those inside a curve of more than three models, of which only the chosen one is drawn;
    at most `MOST_MODELS`.
    """
    long = [curve for curve in report.curves if len(curve.models) > 3]
    inside = {m for curve in long for m in curve.models[1:-1] if m != curve.chosen}
    kept = [model for model in report.models if model not in inside]
    return {model: i for i, model in enumerate(kept[:MOST_MODELS])}


def _grouped(
    items: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], K]
) -> dict[K, list[dict[str, Any]]]:
    """Items by key, keys in the order in which they come."""
    groups: dict[K, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _accuracies(report: ShiftReport) -> dict[tuple[str, str], float]:
    return {(row.model, row.shift): row.value for row in report.of("accuracy")}


def _mean(report: ShiftReport) -> str | None:
    """The mean under shift, or the only shift set."""
    names = _shift_sets(report)
    if MEAN in report.columns():
        return MEAN
    return names[0] if len(names) == 1 else None


def _shift_sets(report: ShiftReport) -> list[str]:
    """Sets that tables show and that are not in distribution."""
    sets = report.protocol.get("sets", {})
    names = [name for name in report.columns() if name in sets]
    return [name for name in names if not sets[name].get("in_distribution")]


def _leads(report: ShiftReport, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Each model against its baseline: figures on the reference and on the mean under shift."""
    cells, names = _accuracies(report), [report.reference, _mean(report)]
    top, *others = styles or [""]
    for model in others:
        first = report.baseline(model) or top
        pairs = [(n, cells.get((first, n)), cells.get((model, n))) for n in names if n]
        moves = [
            {
                "set": report.short(name),
                "from": SHARE.text(a),
                "to": SHARE.text(b),
                "gain": POINTS.text(b - a),
            }
            for name, a, b in pairs
            if a is not None and b is not None
        ]
        if moves:
            yield {"model": model, "first": first, "moves": moves}


def _scatters(report: ShiftReport, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A chart for the mean and for each shift set; on the scale of its fit, if it has one."""
    mean = _mean(report)
    for shift in dict.fromkeys([*([mean] if mean else []), *_shift_sets(report)]):
        usable = [f for f in report.fits if f.shift == shift and f.reference in report.columns()]
        fit = usable[0] if usable else None
        svg = figures.scatter(report, shift, styles, fit)
        if svg:
            yield {"name": heading(report, shift), "svg": Markup(svg), "note": _fit_words(fit)}


def _fit_words(fit: Fit | None) -> str:
    """What the line of a chart is."""
    if fit is None:
        return ""
    words = f"{fit.transform} scale; line: slope {fit.slope:.3g}, intercept {fit.intercept:.3g}"
    words += "" if fit.r2 is None else f", R² {fit.r2:.2f}"
    return _plain("; ".join(part for part in (words, fit.source, fit.note) if part))


def _curves(report: ShiftReport) -> Iterator[dict[str, Any]]:
    for curve in report.curves:
        if len(curve.models) > 2:
            svg = figures.wise_curve(report, curve, _mean(report))
            yield {"curve": curve, "svg": Markup(svg), "mean": _mean(report)}


def _reliability(report: ShiftReport, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A diagram for each set that tables show, with the calibration error of each model."""
    errors = {(row.model, row.shift): row.value for row in report.of("ece")}
    for shift in report.columns():
        svg = figures.reliability(report, shift, styles)
        if svg:
            found = [(m, SHARE.text(errors[m, shift])) for m in styles if (m, shift) in errors]
            yield {"name": heading(report, shift), "svg": Markup(svg), "errors": found}


def _worst(report: ShiftReport, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """For each set, the classes that the second model (or the only one) gets least right."""
    models = [model for model in styles if model in report.details]
    judged = models[:2][-1:]
    for shift in (name for name in report.columns() if judged):
        lines = [
            [name, total, *(_of_class(report, m, shift, name) for m in models)]
            for name, _, total in (
                report.worst_classes(judged[0], shift, 3)
                if shift in report.details[judged[0]]
                else []
            )
        ]
        if lines:
            yield {
                "name": heading(report, shift),
                "judged": judged[0],
                "models": models,
                "lines": lines,
            }


def _of_class(report: ShiftReport, model: str, shift: str, name: str) -> str:
    """Accuracy of a model on one class of a set, in per cent."""
    classes = report.details[model].get(shift, {}).get("classes", {})
    if name not in classes.get("names", []):
        return ""
    place = classes["names"].index(name)
    return SHARE.text(classes["correct"][place] / classes["total"][place])


def _differences(report: ShiftReport, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Paired comparisons of the drawn models, with the bar of each on a common axis."""
    kept = [d for d in report.differences if d.second in styles and d.shift in report.columns()]
    reach = max((abs(end) for d in kept for end in (d.low, d.high)), default=1) or 1
    for d in kept:
        ends = {k: 50 + 46 * v / reach for k, v in (("low", d.low), ("high", d.high))}
        yield {
            "pair": d,
            "style": styles[d.second],
            "gain": POINTS.text(d.difference),
            "low": POINTS.text(d.low),
            "high": POINTS.text(d.high),
            "p": "< 0.001" if d.p_value < 0.001 else f"{d.p_value:.3f}",
            "bar": {**ends, "at": 50 + 46 * d.difference / reach},
            "words": _verdict(d),
        }


def _sides(item: dict[str, Any]) -> tuple[str, str]:
    """Both models of a comparison, the one that is judged first."""
    return item["pair"].second, item["pair"].first


def _verdict(pair: Difference) -> str:
    """The bar of a comparison in words, for those who do not see it."""
    return f"{POINTS.text(pair.difference)} points for {pair.second} against {pair.first}"


def _pictures(gallery: Sequence[Disagreement]) -> Iterator[dict[str, Any]]:
    """Cards of the gallery: image, and relevance of both models over it."""
    for found in gallery:
        answers = [
            {
                "model": answer.model,
                "says": answer.name,
                "right": answer.right,
                "confidence": f"{100 * answer.confidence:.0f}\u00a0%",
                "picture": None
                if answer.relevance is None
                else _data_uri(_overlay(found.image, answer.relevance)),
            }
            for answer in (found.first, found.second)
        ]
        yield {"found": found, "image": _data_uri(found.image), "answers": answers}


def _overlay(image: Tensor, relevance: Tensor) -> Tensor:
    """Relevance (h, w) in [0, 1] in false colours over the grey image uint8 (3, H, W)."""
    from matplotlib import colormaps

    maps = F.interpolate(relevance[None, None].float(), image.shape[1:])[0, 0]
    colours = torch.tensor(colormaps["magma"](maps.numpy()))[..., :3].permute(2, 0, 1)
    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1) / 255
    return (255 * (0.4 * grey + 0.6 * colours)).round().to(torch.uint8)


def _data_uri(image: Tensor) -> str:
    """An image uint8 (3, H, W) as the address of itself: PNG if small, else JPEG."""
    kind, options = ("PNG", {}) if image.shape[-1] <= 96 else ("JPEG", {"quality": 85})
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _sentences(report: ShiftReport) -> Iterator[tuple[str, str]]:
    """The protocol in words, but for the sets, which have a table of their own."""
    said = {
        "metric": "Figures",
        "interval": "Intervals",
        "precision": "Precision of the encoders",
        "missing sets": "Sets that were asked for and are not there",
    }
    protocol = report.protocol
    for key, value in protocol.items():
        # What is told by name has a place of its own.
        if value and not isinstance(value, dict):
            yield said.get(key, key.capitalize()), _plain(value)
    for name, parts in protocol.get("means", {}).items():
        yield name, f"made of {', '.join(map(report.short, parts))}"
    alike: dict[str, list[str]] = {}
    for name, facts in protocol.get("models", {}).items():
        alike.setdefault(_plain(facts), []).append(name)
    for words, names in alike.items():
        yield "Models", f"{', '.join(names)} – {words}"


def _plain(value: Any) -> str:
    """Any value of a protocol as words; addresses without their scheme, so that none is fetched."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("https://", "").replace("http://", "")


def _sets(report: ShiftReport) -> Iterator[dict[str, str]]:
    """What there is to know of each set."""
    totals = {row.shift: row.total for row in report.of("accuracy") if row.total}
    partly = incomplete(report)
    for name, facts in report.protocol.get("sets", {}).items():
        whole = f"Not whole: {partly[name]}." if name in partly else ""
        rules = [_plain(facts.get(key, "")) for key in ("note", "one_to_many", "groups")]
        yield {
            "name": heading(report, name),
            "images": f"{totals[name]:,}" if name in totals else "",
            "classes": _plain(facts.get("classes", "")),
            "rule": " ".join(part for part in (whole, *rules) if part),
            "source": _plain(facts.get("source", "")),
            "licence": _plain(facts.get("licence", "")),
        }


def _facts(run: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Name, words, and whether the words are a whole text, of what is known of the run."""
    for key, value in run.items():
        if value in ([], {}, "", None):
            continue
        text = isinstance(value, str) and "\n" in value.strip()
        yield key.replace("_", " "), _plain(value).strip(), text
