"""Methods by seeds on the digits world: ``python benchmarks/compare.py --seeds 5``.

Every method gets the same number of settings (learning rates). The one with the best
in-distribution validation accuracy, on a world that is not reported, is taken; shift sets are never
looked at for a choice. Prints mean ± standard deviation over the seeds, and differences paired by
seed.
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from pytorch_lightning.callbacks import ModelCheckpoint

import cfmask
from cfmask import (
    ContextMask,
    Counterfactual,
    MultiFill,
    NoFill,
    ObjectMask,
    RandomMask,
    SingleFill,
    digits,
)
from cfmask.counterfactual import Fill, PatchMask
from cfmask.runs.trainer import Trainer
from cfmask.shift import Request
from cfmask.shifts.catalogue import find_shifts

RATES = (1e-4, 3e-4, 1e-3)
PROBE_RATES = (3e-3, 1e-2, 3e-2)
WEIGHT = 4.0  # of the distance, in units of the mean squared teacher feature
TUNING_SEEDS = (1001,)
COLUMNS = ("id", "v2", "counter", "sketch", "rendition", "corruption", "O3", "mean of shifts")


def masked(mask: PatchMask, fill: Fill, of: str = "logit") -> Callable[..., cfmask.Method]:
    """Masked feature distillation with this mask and fill."""
    return partial(
        cfmask.MaskedDistillation,
        counterfactual=Counterfactual(mask, fill),
        relevance_of=of,
        distance="relative_feature",
        distill_weight=WEIGHT,
    )


# Thresholds are the paper's (arXiv 2303.03052).
METHODS: dict[str, Callable[..., cfmask.Method]] = {
    "linear probe": cfmask.LinearProbe,
    "fine-tuning": cfmask.FineTuning,
    "logit distillation, no mask": partial(
        cfmask.Distillation, distance="logit", distill_weight=1.0
    ),
    "feature distillation, no mask": partial(
        cfmask.Distillation, distance="relative_feature", distill_weight=WEIGHT
    ),
    "random mask 0.5, single": masked(RandomMask(0.5), SingleFill()),
    "object mask 0.3, single": masked(ObjectMask(0.3), SingleFill()),
    "context mask 0.5, single": masked(ContextMask(0.5), SingleFill()),
    "random mask 0.5, multi": masked(RandomMask(0.5), MultiFill()),
    "object mask 0.6, multi": masked(ObjectMask(0.6), MultiFill()),
    "context mask 0.3, multi": masked(ContextMask(0.3), MultiFill()),
    "random mask 0.75, none": masked(RandomMask(0.75, exact=True), NoFill()),
    "object mask 0.3, none": masked(ObjectMask(0.3), NoFill()),
    "context mask 0.6, none": masked(ContextMask(0.6), NoFill()),
    "object mask 0.3, single, of loss": masked(ObjectMask(0.3), SingleFill(), "loss"),
}
PAIRS = (
    ("fine-tuning", "zero-shot"),
    ("object mask 0.3, single", "fine-tuning"),
    ("object mask 0.3, single", "WiSE-FT 0.5"),
    ("object mask 0.3, single", "feature distillation, no mask"),
    ("context mask 0.5, single", "feature distillation, no mask"),
    ("random mask 0.5, single", "feature distillation, no mask"),
    ("object mask 0.3, none", "object mask 0.3, single"),
    ("object mask 0.3, single, of loss", "object mask 0.3, single"),
)

Figures = dict[str, dict[str, float]]  # model -> set -> accuracy in %


def rates_of(method: str) -> tuple[float, ...]:
    """The settings of a method: three learning rates."""
    return PROBE_RATES if method == "linear probe" else RATES


def tune(
    make: Callable[..., cfmask.Method], seed: int, epochs: int
) -> tuple[float, cfmask.Classifier, cfmask.Classifier]:
    """Tune the tiny CLIP once: best validation accuracy, the model before, and the best after."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    pl.seed_everything(seed, verbose=False)
    start = cfmask.OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    pretrained = cfmask.OpenClipClassifier.from_spec(start.spec)
    pretrained.load_state_dict(start.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/accuracy", mode="max", save_weights_only=True)
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision="auto",
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[best],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(make(start), cfmask.DigitsData(seed=seed))
        tuned = cfmask.load_classifier(best.best_model_path)
        return float(best.best_model_score or 0), pretrained, tuned


def run(method: str, lr: float, seed: int, epochs: int) -> tuple[float, Figures]:
    """Tune once: best validation accuracy, and accuracies on every set."""
    score, pretrained, tuned = tune(partial(METHODS[method], lr=lr), seed, epochs)
    models = {method: tuned}
    if method == "fine-tuning":
        models["zero-shot"] = pretrained
        models["WiSE-FT 0.5"] = cfmask.interpolate(pretrained, tuned, 0.5)
    if seed in TUNING_SEEDS:
        return score, {}
    shifts = find_shifts(["digits"], Request(None, digits.CLASS_NAMES, seed=seed))
    report = cfmask.evaluate(models, shifts)
    return score, {m: {c: 100 * report.value(m, c) for c in COLUMNS} for m in models}


def choose(pool: ProcessPoolExecutor, methods: list[str], epochs: int) -> dict[str, float]:
    """Learning rate of each method by mean validation accuracy on the tuning seeds."""
    jobs = {
        (m, lr, s): pool.submit(run, m, lr, s, epochs)
        for m in methods
        for lr in rates_of(m)
        for s in TUNING_SEEDS
    }
    chosen = {}
    for m in methods:
        scores = {
            lr: statistics.mean(jobs[m, lr, s].result()[0] for s in TUNING_SEEDS)
            for lr in rates_of(m)
        }
        chosen[m] = max(scores, key=scores.__getitem__)
        listed = ", ".join(f"{lr:g}: {100 * score:.1f}" for lr, score in scores.items())
        print(f"{m}: lr {chosen[m]:g} (validation {listed})", flush=True)
    return chosen


def compare(
    seeds: int = 5,
    epochs: int = 6,
    workers: int = 2,
    out: Path | None = None,
    only: list[str] | None = None,
) -> None:
    """Compare methods.

    Args:
        seeds: number of worlds reported, seeds 0, 1, …
        epochs: of every run.
        workers: runs at a time, one core each.
        out: Markdown file to write the tables to, after its line `<!-- figures -->`.
        only: some of the methods' names; the default are all.
    """
    methods = only or list(METHODS)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        rates = choose(pool, methods, epochs)
        jobs = {
            (m, s): pool.submit(run, m, rates[m], s, epochs) for m in methods for s in range(seeds)
        }
        results: dict[str, list[dict[str, float]]] = {}
        for s in range(seeds):
            merged: Figures = {}
            for m in methods:
                merged |= jobs[m, s].result()[1]
            for model, figures in merged.items():
                results.setdefault(model, []).append(figures)
    text = table(results, rates) + "\n" + differences(results)
    print(text)
    if out is not None:
        head = out.read_text().split("<!-- figures -->")[0]
        out.write_text(f"{head}<!-- figures -->\n\n{text}")


def table(results: dict[str, list[dict[str, float]]], rates: dict[str, float]) -> str:
    """Markdown table, mean ± standard deviation over seeds."""
    first = ["zero-shot", "linear probe", "fine-tuning", "WiSE-FT 0.5"]
    order = [m for m in first if m in results] + [m for m in results if m not in first]
    lines = [
        f"| method | lr | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for model in order:
        cells = []
        for column in COLUMNS:
            values = [figures[column] for figures in results[model]]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        rate = rates.get("fine-tuning" if "WiSE" in model else model)
        lines.append(f"| {model} | {f'{rate:g}' if rate else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table of differences paired by seed: mean and its 95 % t interval."""
    from scipy.stats import t

    lines = ["| difference, paired by seed | id | O3 | mean of shifts |", "|---|---|---|---|"]
    for a, b in (pair for pair in PAIRS if set(pair) <= set(results)):
        cells = []
        for column in ("id", "O3", "mean of shifts"):
            values = [x[column] - y[column] for x, y in zip(results[a], results[b])]
            mean, n = statistics.mean(values), len(values)
            reach = t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else math.nan
            cells.append(f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})")
        lines.append(f"| {a} − {b} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
