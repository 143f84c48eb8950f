"""Views on the page: each as what it is, with the figures of the report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cfmask import ShiftReport
from cfmask.evaluation.figures import Row
from cfmask.reporting import view_charts
from cfmask.reporting.page import as_html
from cfmask.views.known_views import views_of
from cfmask.views.structure import mirrored_crop
from cfmask.views.view import metrics_of

VIEWS = views_of(["translation/2", "structure/3"])
SHARES = [f"translation/2/{name}" for name in ("agreement", "all_agree", "worst_accuracy")]
CURVE = ["structure/3/2x2", "structure/3/3x3"]
CHANGE = "translation/2/feature_change"


def report() -> ShiftReport:
    """Two models on a set; the second has no features."""
    rows = [
        Row(model, "id", metric, value, low=value - 0.1, high=value + 0.05)
        for model, own in (("a", [*SHARES, CHANGE, *CURVE]), ("b", SHARES))
        for metric, value in zip(own, (0.5, 0.4, 0.3, 0.0123, 0.6, 0.7))
    ]
    rows += [Row(model, "id", "accuracy", 0.5, 5, 10) for model in "ab"]
    metrics = {name: metric.described() for name, metric in metrics_of(VIEWS).items()}
    views = {name: view.described(name) for name, view in VIEWS.items()}
    return ShiftReport(rows, {"sets": {"id": {}}, "views": views, "metrics": metrics}, "id")


def test_a_view_along_numbers_is_a_curve_and_another_bars(monkeypatch):
    drawn = []
    monkeypatch.setattr(view_charts, "svg", lambda panel: drawn.append(panel) or "")
    ((moved, shuffled),) = view_charts.view_charts(report(), {"a": 0, "b": 1})
    bars, curve = drawn
    assert bars.bars and list(bars.places) == ["agreement", "all_agree", "worst_accuracy"]
    assert [one.y for one in bars.series] == [pytest.approx([50, 40, 30])] * 2
    assert bars.series[1].low == pytest.approx([40, 30, 20])
    assert bars.series[1].high == pytest.approx([55, 45, 35])
    assert not curve.bars and list(curve.places) == [2, 3]
    assert curve.across == "patches a side"
    assert [(one.number, one.y) for one in curve.series] == [(0, pytest.approx([60, 70]))]
    # What is no share stands below in words, of the models that have it.
    assert moved["words"].endswith("moved by 2 px: a 0.0123") and shuffled["words"] == ""


def test_the_views_of_a_set_are_one_row_of_the_page():
    page = as_html(report()).partition('<section id="views">')[2].partition("</section>")[0]
    assert page.count('<div class="charts pairs">') == 1
    assert page.count("<svg") == page.count("<h3>") == 2


@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 52)])
def test_the_mirrored_crop_is_pillow_s(height, width):
    image = np.random.default_rng(0).random((height, width)).astype(np.float32)
    top, left = round(0.1 * height), round(0.1 * width)
    middle = Image.fromarray(image[top : height - top, left : width - left])
    whole = np.asarray(middle.resize((width, height), Image.Resampling.BICUBIC))
    found = mirrored_crop(torch.tensor(image).expand(1, 3, -1, -1))
    assert found.shape == (1, 3, height, width)
    for channel in found[0].numpy():
        np.testing.assert_allclose(channel, whole.clip(0, 1)[:, ::-1], atol=1e-4)
