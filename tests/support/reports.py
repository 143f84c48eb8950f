"""Reports with made-up figures, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

import torch

from cfmask import ShiftReport
from cfmask.evaluation.estimates import interval
from cfmask.evaluation.figures import Curve, Difference, Fit, Row
from cfmask.reporting.disagreement import Answer, Disagreement

NASTY = "50 % <b>a_b</b> & {c} $x^2$ ~ \\d | `e` #1\nline"
SETS = ("id", "v2", "sketch")
HITS = {"zero-shot": (14, 9, 6), "WiSE-FT 0.5": (17, 10, 7), "tuned": (18, 5, 3)}
TOTAL = 20


def size(found: int) -> dict[str, Any]:
    whole = {"images": 10, "classes": 2}
    return {"found": {"images": found, "classes": 2}, "expected": whole, "complete": found == 10}


def small_report(name: str = "tuned") -> ShiftReport:
    """Four accuracies, a mean and an odd metric; `sketch` is not whole."""
    rows = [
        Row("zero-shot", "id", "accuracy", 13 / 16, 13, 16, 0.5439, 0.9598),
        Row(name, "id", "accuracy", 1.0, 16, 16, 0.7941, 1.0),
        Row("zero-shot", "sketch", "accuracy", 5 / 16, 5, 16, 0.1102, 0.5866),
        Row(name, "sketch", "accuracy", 0.25, 4, 16, 0.0727, 0.5238),
        Row("zero-shot", "mean of shifts", "accuracy", 1 / 3, None, None, 0.2, 0.4),
        Row("zero-shot", "id", "odd", 1.25, note="why, and how"),
    ]
    protocol = {
        "interval": "95 % Clopper-Pearson",
        "sets": {"id": {"size": size(10)}, "sketch": {"size": size(8)}, "v2": {}},
        "means": {"mean of shifts": ["sketch", "v2"], "other": ["id", "v2"]},
    }
    return ShiftReport(rows, protocol, "id")


def whole_report(rename: dict[str, str] | None = None) -> ShiftReport:
    """Every part that a report can have; models and sets can be given other names."""
    rename = rename or {}
    models = {rename.get(m, m): hits for m, hits in HITS.items()}
    sets = [rename.get(s, s) for s in SETS]
    first, middle, tuned = models
    return ShiftReport(
        rows=_rows(models, sets),
        protocol={
            "metric": "top-1 accuracy",
            "interval": "95 % Clopper-Pearson",
            "means": {"mean of shifts": sets[1:]},
            "sets": {
                s: {"in_distribution": i == 0, "classes": 10, "source": "https://example.org/x"}
                | ({"size": size(8)} if i == 2 else {})
                for i, s in enumerate(sets)
            },
            "models": {m: {"encoder": rename.get("encoder", "tiny")} for m in models},
            "precision": "fp32",
        },
        reference=sets[0],
        details={m: {s: _counts(rename) for s in sets} for m in models},
        differences=[
            Difference(first, tuned, sets[0], 1, 5, TOTAL, 0.2, -0.0216, 0.4116, 0.21875),
            Difference(first, tuned, sets[1], 6, 2, TOTAL, -0.2, -0.45, 0.05, 0.0001),
        ],
        fits=[Fit(sets[1], sets[0], "logit", 0.92, -0.5, 0.99, 0.5, 0.8, "85 models")],
        curves=[Curve([0.0, 0.5, 1.0], [first, middle, tuned], tuned, sets[0])],
        run={
            "versions": {rename.get("version", "torch"): "2.14"},
            "seconds": 12.5,
            "config": f"run: x\nname: {rename.get('config', 'y')}\n",
            "date": "2026-01-31 12:00 +0000",
            "runs": {
                rename.get("run", "first"): {
                    "method": rename.get("method", "MaskedDistillation"),
                    "data": "FolderData photos",
                    "trained": "2 epochs",
                }
            },
        },
        training={
            rename.get("run", "first"): {
                "loss/total": [[0, 2.0], [1, 1.5]],
                f"loss/{rename.get('loss', 'task')}": [[0, 1.0], [1, 0.5]],
                "val/accuracy": [[1, 0.875]],
                "masked_share": [[0, 0.2]],
            }
        },
    )


def _rows(models: dict[str, tuple[int, ...]], sets: list[str]) -> list[Row]:
    rows = []
    for model, hits in models.items():
        for shift, count in zip(sets, hits):
            ends = interval(count, TOTAL)
            rows.append(Row(model, shift, "accuracy", count / TOTAL, count, TOTAL, *ends))
            rows.append(Row(model, shift, "ece", 0.01 * count))
        mean = (hits[1] + hits[2]) / 2 / TOTAL
        rows.append(Row(model, "mean of shifts", "accuracy", mean, None, None, mean - 0.1, mean))
    return rows


def _counts(rename: dict[str, str]) -> dict[str, dict[str, list[Any]]]:
    names = [rename.get("class", "seven"), "two", "three", "four"]
    bins = {"count": [0, 3] + [20] * 13, "confidence": [0, 0.5], "correct": [0, 1]}
    bins["confidence"] += [20 * (i + 0.5) / 15 for i in range(2, 15)]
    bins["correct"] += list(range(2, 15))
    return {"classes": {"names": names, "correct": [1, 3, 4, 5], "total": [5] * 4}, "bins": bins}


def gallery(rename: dict[str, str] | None = None) -> list[Disagreement]:
    """Two pictures of noise, a small and a large one."""
    rename = rename or {}
    rng = torch.Generator().manual_seed(0)

    def picture(side: int, name: str, first: bool) -> Disagreement:
        image = torch.randint(0, 256, (3, side, side), generator=rng).byte()
        maps = torch.rand(2, 2, 2, generator=rng)
        answers = (
            Answer("zero-shot", rename.get("class", "seven"), 0.61, first, maps[0]),
            Answer("tuned", "two", 0.88, not first, None if side > 96 else maps[1]),
        )
        return Disagreement(
            rename.get(name, name),
            7,
            rename.get("class", "seven"),
            image,
            *answers,
            file=rename.get("file", "seven.png") if side > 96 else "",
        )

    return [picture(48, "id", True), picture(120, "sketch", False)]
