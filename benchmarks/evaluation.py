"""Time of an evaluation of the digits world: ``python benchmarks/evaluation.py``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import cfmask
from cfmask import digits
from cfmask.shift import Request


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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


if __name__ == "__main__":
    main()
