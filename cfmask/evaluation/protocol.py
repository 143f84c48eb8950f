"""Protocol: the rules by which figures were taken, and facts of the run that took them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cfmask import processes
from cfmask.decoding import DECODERS, Decoder
from cfmask.evaluation.measures import combinations
from cfmask.evaluation.metrics import METRICS, Metric
from cfmask.shift import Shift
from cfmask.version import __version__

SAVED = "not known, as all answers come from files"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow")


def protocol_of(
    models: Mapping[str, Mapping[str, Any]],
    shifts: Sequence[Shift],
    precision: str | None,
    decoder: Decoder,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Any]:
    """The rules of all sets, means and metrics, and facts of the models, for JSON.

    A precision of None stands for answers that were all read from files.
    """
    return {
        "metric": "top-1 accuracy, every image counted once",
        "metrics": {name: metric.described() for name, metric in metrics.items()},
        "interval": "; of ".join(_intervals(shifts)),
        "comparison": "exact McNemar test on the same images; interval of the difference: "
        "Bonett-Price",
        "means": {name: list(of.weights) for name, of in combinations(shifts).items()},
        "sets": {shift.name: set_protocol(shift) for shift in shifts},
        "missing sets": sorted({name for shift in shifts for name in shift.missing}),
        "models": {name: dict(facts) for name, facts in models.items()},
        "precision": precision or SAVED,
        "decoder": f"{decoder}: {DECODERS[decoder]}" if precision else SAVED,
    }


def _intervals(shifts: Sequence[Shift]) -> Iterator[str]:
    """What intervals are, and of which figures another one."""
    yield "95 % Clopper-Pearson"
    yield "means: normal, from the sets' binomial variances"
    yield "AUROC and OSCR: DeLong's"
    if any(shift.groups is not None for shift in shifts):
        yield "means, disparity and gaps of groups: normal, from the groups' binomial variances"
    if any(shift.ladder is not None for shift in shifts):
        yield "drops over scales: normal, the images of a trajectory taken together"
        yield "failure points: normal, from their standard deviation"


def set_protocol(shift: Shift) -> dict[str, Any]:
    """The rules of one set, without those that do not apply."""
    facts: dict[str, Any] = {
        "in_distribution": shift.in_distribution,
        "classes": "all" if shift.classes is None else len(shift.classes),
    }
    if shift.found is not None:
        facts["images"] = shift.found.images
    if shift.unknown:
        facts["unknown"] = True
    elif shift.accepts is not None:
        several = sum(len(classes) > 1 for classes in shift.accepts.values())
        facts["one_to_many"] = (
            f"{len(shift.accepts)} classes of the set, {several} of them with several of the "
            "head's; right if the argmax is one of them; nll of all of them together"
        )
    if shift.found is not None and shift.expected is not None:
        found, expected = asdict(shift.found), asdict(shift.expected)
        facts["size"] = {"found": found, "expected": expected, "complete": found == expected}
    if shift.groups is not None:
        facts["groups"] = list(shift.group_names)
    texts = {"note": shift.note, "source": shift.source, "licence": shift.licence}
    texts["part_of"] = shift.part_of
    return facts | {key: text for key, text in texts.items() if text}


def run_facts(images: int, seconds: float, reused: Sequence[str]) -> dict[str, Any]:
    """Date, versions, hardware and time of an evaluation.

    It has answered `images` in `seconds`, and taken earlier answers to the sets `reused`.
    """
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        "processes": processes.count(),
        "images": images,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1) if images else 0.0,
        "reused": list(reused),
    }


def hardware() -> str:
    """The processor with its number of cores in use, and the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads", *gpus])


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8", "replace").splitlines() if facts.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Versions of this package and of those that affect weights and figures, if installed."""
    found = {"cfmask": __version__}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
