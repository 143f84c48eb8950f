"""What training does to missingness bias: ``python benchmarks/missingness_training.py``.

Tunes the tiny CLIP on the digits world: plainly, and by masked distillation with an object mask and
each fill. Prints removal curves' areas, shape bias, and how well the model's own masks cover the
digit, before and after, as mean ± standard deviation over seeds, and differences to plain
fine-tuning paired by seed, with t intervals of 95 %. What is finished is kept in `--out`, so that
more seeds add to it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from scipy.stats import t
from tuning import masked, tune

import cfmask
from cfmask import digits
from cfmask.counterfactual import (
    BlurFill,
    ConstantFill,
    Fill,
    MultiFill,
    NoFill,
    ObjectMask,
    SingleFill,
)
from cfmask.missingness.findings import SHAPE
from cfmask.missingness.hiding import GREY
from cfmask.missingness.lab import missingness
from cfmask.missingness.object_masks import MaskedDigits
from cfmask.shift import Request
from cfmask.shifts.catalogue import find_shifts

MASK = ObjectMask(0.3)
FILLS: dict[str, Fill] = {
    "single": SingleFill(),
    "multi": MultiFill(),
    "no fill": NoFill(),
    "grey": ConstantFill(GREY),
    "blur": BlurFill(),
}
METHODS: dict[str, Callable[..., cfmask.Method]] = {
    "fine-tuning": cfmask.FineTuning,
    **{f"masked, {name}": masked(MASK, fill) for name, fill in FILLS.items()},
}
BEFORE, PLAIN = "before", "fine-tuning"
HIDINGS = ("black", "grey", "blur", "removed")
Figures = dict[str, float]


def measured(model: cfmask.Classifier, seed: int, images: int) -> Figures:
    """All figures of a model, in % (accuracies, kept predictions) or shares of 100."""
    data = MaskedDigits("id", images, seed)
    options = {"hidings": HIDINGS, "orders": ("random",), "side": 8, "samples": 1, "seed": seed}
    found = missingness({"m": model}, {"m": data}, **options)
    kept = {row.hiding: 100 * row.curves["kept"].area[0] for row in found.removal}
    shape = {row["hidden by"]: row for row in found.tables[SHAPE]}
    shifts = find_shifts(["digits"], Request(None, digits.CLASS_NAMES, images, seed=seed))
    report = cfmask.evaluate({"m": model}, shifts)
    return {
        **{f"kept, {way}": value for way, value in kept.items()},
        "removed − grey": kept["removed"] - kept["grey"],
        "object grey": 100 * shape["grey"]["object hidden"][0],
        "elsewhere grey": 100 * shape["grey"]["as much elsewhere"][0],
        "mask on digit": 100 * covered(model, data),
        **{name: 100 * (report.value("m", name) or 0.0) for name in ("id", "O3")},
    }


def covered(model: cfmask.Classifier, data: MaskedDigits) -> float:
    """Mean Jaccard index of the patches that the object mask takes and those that hold the digit.

    The mask is made from the model's own relevance for the true class, as in training.
    """
    drawn, scores = data.drawn, []
    relevance = cfmask.AttentionRelevance()
    for part in torch.arange(len(data)).split(100):
        images = drawn.images[part].float() / 255
        taken = MASK(relevance.explain(model, images, drawn.labels[part])[1])
        digit = F.adaptive_max_pool2d(drawn.digit[part].float(), model.grid) > 0
        scores += ((taken & digit).sum((1, 2)) / (taken | digit).sum((1, 2))).tolist()
    return statistics.mean(scores)


def run(seed: int, epochs: int, images: int, lr: float, out: Path) -> dict[str, Figures]:
    """Figures of a seed by model, those already in the file as they are."""
    path = out / f"seed-{seed}.json"
    found: dict[str, Figures] = json.loads(path.read_text()) if path.is_file() else {}
    for name, make in METHODS.items():
        if name not in found:
            _, start, tuned = tune(partial(make, lr=lr), seed, epochs)
            if BEFORE not in found:
                found[BEFORE] = measured(start, seed, images)
            found[name] = measured(tuned, seed, images)
            path.write_text(json.dumps(found, indent=1))
            print(f"seed {seed}: {name}", flush=True)
    return found


def table(seeds: Sequence[Mapping[str, Figures]]) -> str:
    """Markdown: a row a model, mean ± standard deviation."""
    columns = list(seeds[0][BEFORE])
    rows = [
        [name, *(_spread([one[name][c] for one in seeds]) for c in columns)] for name in seeds[0]
    ]
    return _markdown(["model", *columns], rows)


def differences(seeds: Sequence[Mapping[str, Figures]]) -> str:
    """Markdown: what a model has more than plain fine-tuning of the same seed, with intervals."""
    columns, rows = list(seeds[0][BEFORE]), []
    for name in seeds[0]:
        if name != PLAIN:
            pairs = [[one[name][c] - one[PLAIN][c] for one in seeds] for c in columns]
            rows.append([f"{name} − {PLAIN}", *(_interval(pair) for pair in pairs)])
    return _markdown(["paired by seed", *columns], rows)


def _spread(values: Sequence[float]) -> str:
    reach = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{reach}"


def _interval(values: Sequence[float]) -> str:
    """Mean with its interval of 95 % by Student's t."""
    mean, number = statistics.mean(values), len(values)
    if number < 2:
        return f"{mean:+.1f}"
    reach = t.ppf(0.975, number - 1) * statistics.stdev(values) / number**0.5
    return f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(out: Path, seeds: int = 3, epochs: int = 6, images: int = 500, lr: float = 3e-4) -> None:
    """Tune, measure and print.

    Args:
        out: folder for what is finished.
        seeds: number of worlds, seeds 0, 1, …
        epochs: of every run.
        images: that each model is measured on.
        lr: of every run, that of the demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = [run(seed, epochs, images, lr, out) for seed in range(seeds)]
    print(table(found))
    print(differences(found))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
