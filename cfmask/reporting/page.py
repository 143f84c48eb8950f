"""Page: a report and pictures of disagreements -> one HTML page that needs no network.

The layout is `page.html` (Jinja, everything escaped); this module gathers its content.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from cfmask.evaluation.figures import Fit
from cfmask.evaluation.results import Results
from cfmask.reporting import charts
from cfmask.reporting.details import (
    POINTS,
    SHARE,
    differences_table,
    judged_model,
    plain,
    sets_table,
    worst_table,
)
from cfmask.reporting.disagreement import Disagreement
from cfmask.reporting.front_figures import front_tables
from cfmask.reporting.further_charts import ladder_charts, ladder_tables, unknown_charts
from cfmask.reporting.group_charts import group_charts
from cfmask.reporting.rendering import BELOW, environment
from cfmask.reporting.svg import GLYPHS
from cfmask.reporting.tables import footnotes, heading, incomplete, spread_tables, tables
from cfmask.reporting.view_charts import view_charts

# Range of grey of pictures under relevance, in [0, 1].
DARKEST, BRIGHTEST = 0.12, 0.72
# Most sets that are named at the top of the page.
MOST_SETS = 12
# Facts of a run at the top.
AT_THE_TOP = ("runs", "date")


def as_html(report: Results, gallery: Sequence[Disagreement] = ()) -> str:
    """The page: tables, charts, facts of the run, and the pictures of a gallery, in one file."""
    styles, mean = charts.drawn_models(report), report.under_shift
    content = {
        "legend": [(m, i, GLYPHS[i]) for m, i in styles.items()],
        "about": list(_about(report)),
        "training": list(_training(report)),
        "leads": list(_leads(report, styles)),
        "tables": [*tables(report), *spread_tables(report)[1:]],
        "seeds": spread_tables(report)[:1],
        "partly": incomplete(report),
        "footnotes": footnotes(report, place=BELOW),
        "scatters": list(_scatters(report, styles)),
        "curves": [
            {"curve": c, "svg": Markup(charts.wise_curve(report, c, mean)), "mean": mean}
            for c in report.curves
            if len(c.models) > 2
        ],
        "fronts": front_tables(report),
        "front_chart": Markup(charts.fronts(report)),
        "front_legend": [
            (f.model, i, GLYPHS[i]) for i, f in enumerate(report.fronts[: len(GLYPHS)])
        ],
        "groups": list(group_charts(report, styles)),
        "ladders": list(ladder_charts(report, styles)),
        "ladder_tables": ladder_tables(report, styles),
        "unknown": list(unknown_charts(report, styles)),
        "views": list(view_charts(report, styles)),
        "reliability": list(_reliability(report, styles)),
        "differences": differences_table(report, styles),
        "worst": worst_table(report, styles),
        "judged": judged_model(report, styles),
        "pictures": _pictures(gallery),
        "explainers": _explainers(gallery),
        "protocol": list(_sentences(report)),
        "sets": sets_table(report),
        "facts": list(_facts(report.run)),
    }
    page = environment().get_template("page.html")
    return page.render(report=report, heading=heading, **content)


def _leads(report: Results, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Each model against its baseline: figures on the reference and on the mean under shift."""
    cells, names = report.cells(), [report.reference, report.under_shift]
    top, *others = styles or [""]
    for model in others:
        first = report.baseline(model) or top
        pairs = [(n, cells.get((first, n)), cells.get((model, n))) for n in names if n]
        moves = [
            {
                "set": report.short(name),
                "from": SHARE.text(a.value),
                "to": SHARE.text(b.value),
                "gain": POINTS.text(b.value - a.value),
            }
            for name, a, b in pairs
            if a is not None and b is not None
        ]
        if moves:
            yield {"model": model, "first": first, "moves": moves}


def _scatters(report: Results, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A chart for the mean and for each shift set; on the scale of its fit, if it has one."""
    mean = report.under_shift
    for shift in dict.fromkeys([*([mean] if mean else []), *report.shift_sets]):
        usable = [f for f in report.fits if f.shift == shift and f.reference in report.columns()]
        fit = usable[0] if usable else None
        svg = charts.scatter(report, shift, styles, fit)
        if svg:
            yield {"name": heading(report, shift), "svg": Markup(svg), "note": _fit_words(fit)}


def _fit_words(fit: Fit | None) -> str:
    """Description of a chart's line."""
    if fit is None:
        return ""
    words = f"{fit.transform} scale; line: slope {fit.slope:.3g}, intercept {fit.intercept:.3g}"
    words += "" if fit.r2 is None else f", R² {fit.r2:.2f}"
    return plain("; ".join(part for part in (words, fit.source, fit.note) if part))


# Prefix of logged names -> title and factor of their values.
LOGGED = {"loss/": ("Loss", 1), "val/": ("Validation, %", 100)}


def _training(report: Results) -> Iterator[dict[str, Any]]:
    """For each run, a chart of its losses and one of its validation."""
    for run, logged in report.training.items():
        for begins, (title, scale) in LOGGED.items():
            curves = {
                name.removeprefix(begins): [(step, scale * value) for step, value in curve]
                for name, curve in logged.items()
                if name.startswith(begins) and curve
            }
            if curves:
                names = list(curves)[: charts.MOST_MODELS]
                yield {
                    "name": f"{run}: {title}" if len(report.training) > 1 else title,
                    "svg": Markup(charts.training(curves, title)),
                    "legend": [(name, i, GLYPHS[i]) for i, name in enumerate(names)],
                }


def _about(report: Results) -> Iterator[tuple[str, str]]:
    """Run, method, data, model, sets and date, for the top of the page."""
    found = report.run.get("runs")
    known = found if isinstance(found, dict) else {}
    runs = {name: _named_facts(facts) for name, facts in known.items()}
    for name, facts in runs.items():
        if len(runs) == 1:
            yield from {"run": name, **facts}.items()
        else:
            yield "run", " – ".join([name, *facts.values()])
    protocol = report.protocol
    encoders = [str(facts.get("encoder", "")) for facts in protocol.get("models", {}).values()]
    if any(encoders):
        yield "model", ", ".join(filter(None, dict.fromkeys(encoders)))
    names = [name for name in report.columns() if name in report.sets]
    more = f" and {len(names) - MOST_SETS} more" if len(names) > MOST_SETS else ""
    if names:
        yield "evaluated on", ", ".join(map(report.short, names[:MOST_SETS])) + more
    if report.run.get("date"):
        yield "date", plain(report.run["date"])


def _named_facts(facts: Any) -> dict[str, str]:
    """Facts of a run for the top of the page."""
    known = facts if isinstance(facts, dict) else {}
    return {key: plain(known[key]) for key in ("method", "data", "trained") if known.get(key)}


def _reliability(report: Results, styles: dict[str, int]) -> Iterator[dict[str, Any]]:
    """A diagram for each set in tables, with the calibration error of each model."""
    errors = report.cells("ece")
    for shift in report.columns():
        svg = charts.reliability(report, shift, styles)
        if svg:
            found = [
                (m, SHARE.text(errors[m, shift].value)) for m in styles if (m, shift) in errors
            ]
            yield {"name": heading(report, shift), "svg": Markup(svg), "errors": found}


def _pictures(gallery: Sequence[Disagreement]) -> dict[str, list[dict[str, Any]]]:
    """Cards of the gallery by set: image, and relevance of both models over it."""
    cards: dict[str, list[dict[str, Any]]] = {}
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
        name = found.file or f"image {found.index}"
        card = {"found": found, "name": name, "image": _data_uri(found.image), "answers": answers}
        cards.setdefault(found.shift, []).append(card)
    return cards


def _explainers(gallery: Sequence[Disagreement]) -> list[str]:
    """The distinct explainers of the gallery."""
    answers = [answer for found in gallery for answer in (found.first, found.second)]
    return list(dict.fromkeys(answer.explainer for answer in answers if answer.explainer))


def _overlay(image: Tensor, relevance: Tensor) -> Tensor:
    """Relevance (h, w) in [0, 1] as colour over the grey image uint8 (3, H, W).

    The greys are stretched to one range; the colour is transparent where relevance is low.
    """
    from matplotlib import colormaps

    maps = F.interpolate(relevance[None, None].float(), image.shape[1:])[0, 0]
    colours = torch.tensor(colormaps["plasma"](0.25 + 0.75 * maps.numpy()))[..., :3].float()
    grey = image.float().mean(0)
    low, high = grey.min(), grey.max()
    grey = DARKEST + (BRIGHTEST - DARKEST) * (grey - low) / (high - low).clamp(min=1)
    whole = torch.lerp(grey[..., None].expand(-1, -1, 3), colours, 0.85 * maps[..., None])
    return (255 * whole).round().byte().permute(2, 0, 1)


def _data_uri(image: Tensor) -> str:
    """An image uint8 (3, H, W) as a data URI: PNG if small, else JPEG."""
    kind, options = ("PNG", {}) if image.shape[-1] <= 96 else ("JPEG", {"quality": 85})
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _sentences(report: Results) -> Iterator[tuple[str, str]]:
    """The protocol in words, without the sets, which have a table."""
    said = {
        "metric": "Figures",
        "interval": "Intervals",
        "precision": "Precision of the encoders",
        "missing sets": "Sets that were asked for and are not there",
    }
    protocol = report.protocol
    for key, value in protocol.items():
        # Dictionaries have their own place.
        if value and not isinstance(value, dict):
            yield said.get(key, key.capitalize()), plain(value)
    for name, parts in protocol.get("means", {}).items():
        yield name, f"made of {', '.join(map(report.short, parts))}"
    alike: dict[str, list[str]] = {}
    for name, facts in protocol.get("models", {}).items():
        alike.setdefault(plain(facts), []).append(name)
    for words, names in alike.items():
        yield "Models", f"{', '.join(names)} – {words}"


def _facts(run: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Name, words, and whether these are a text of several lines, of each fact of the run."""
    for key, value in run.items():
        if key in AT_THE_TOP or value in ([], {}, "", None):
            continue
        text = isinstance(value, str) and "\n" in value.strip()
        yield key.replace("_", " "), plain(value).strip(), text
