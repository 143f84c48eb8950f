"""Time of an evaluation of the digits world: ``python benchmarks/evaluation.py``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import cfmask
from cfmask import digits
from cfmask.shift import Request
from cfmask.views.known_views import views_of

# What is asked beside a plain pass -> sets, corruptions and views.
ASKED: dict[str, tuple[list[str], tuple[str, ...], tuple[str, ...]]] = {
    "plain": (["digits/id"], (), ()),
    "contexts": (["digits/contexts"], (), ()),
    "an unknown set": (["digits/id", "digits/mirrored"], (), ()),
    "--corrupt contrast": (["digits/id"], ("contrast",), ()),
    "--corrupt gaussian_blur": (["digits/id"], ("gaussian_blur",), ()),
    "--views translation": (["digits/id"], (), ("translation",)),
    "--views structure": (["digits/id"], (), ("structure",)),
}


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def evaluations(classifier: cfmask.Classifier, images: int, repeats: int = 3) -> Table:
    """Processor time of each evaluation per 1,000 images, least of interleaved repeats."""
    took: dict[str, list[float]] = {name: [] for name in ASKED}
    answered = {}
    for _ in range(repeats):
        for name, (sets, corrupt, views) in ASKED.items():
            request = Request(None, digits.CLASS_NAMES, images, corrupt=corrupt)
            shifts = cfmask.find_shifts(sets, request)
            given = {"m": classifier}, shifts
            work = partial(cfmask.evaluate, *given, views=views_of(views))
            took[name].append(seconds(work, time.process_time))
            answered[name] = len(shifts)
    table = Table(title="each evaluation, of 1,000 images of digits/id")
    for column in ("what", "sets", "processor seconds", "by a plain pass"):
        table.add_column(column, justify="left" if column == "what" else "right")
    plain = min(took["plain"])
    for name, times in took.items():
        each = 1000 * min(times) / images
        table.add_row(name, str(answered[name]), f"{each:.1f}", f"{min(times) / plain:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000, help="of all six sets together")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    classifier = cfmask.OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    request = Request(None, digits.CLASS_NAMES, -(-options.images // 6))
    shifts = cfmask.find_shifts(["digits"], request)
    count = 6 * request.images
    # The photographs are read once a process.
    cfmask.find_shifts(["digits"], Request(None, digits.CLASS_NAMES, 10))[0].load(
        classifier.preprocess
    )
    drawn = seconds(lambda: [shift.load(classifier.preprocess) for shift in shifts])
    whole = seconds(lambda: cfmask.evaluate({"m": classifier}, shifts, precision=options.precision))
    table = Table(title=f"{count:,} images, {options.precision}, {torch.get_num_threads()} threads")
    for column in ("what", "seconds", "images/s"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {"drawing them": drawn, "the rest": whole - drawn, "the evaluation": whole}
    for what, took in rows.items():
        table.add_row(what, f"{took:.1f}", f"{count / took:,.0f}")
    Console().print(table)
    Console().print(evaluations(classifier, request.images))


if __name__ == "__main__":
    main()
