"""The command eval.py: models and sets -> report."""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cfmask import processes
from cfmask.commands.check_sets import check_data
from cfmask.commands.parser import as_lists, command, print_report
from cfmask.comparison.compare import Evaluation, compare, report_folder
from cfmask.comparison.sources import is_run
from cfmask.errors import InputError, unknown
from cfmask.evaluation.metrics import METRICS
from cfmask.reporting.report import ShiftReport
from cfmask.runs.run_folder import CONFIG, RunFolder
from cfmask.trust import import_trusted, is_path
from cfmask.views.known_views import views_of
from cfmask.views.view import metrics_of


def evaluate_run(args: Sequence[str]) -> ShiftReport | None:
    """Evaluate models under shift: the whole of ``eval.py``.

    What is not given is taken from the first run folder.

    Args:
        args: command line without the program.

    Returns:
        The report; None if sets were only checked.
    """
    args = as_lists(args, *LISTS)
    if "--check" in args:
        check_data(args)
        return None
    what = "Evaluate models under shift. Checks sets: eval.py --check --help."
    with command("eval.py", what) as parser, processes.joined():
        parser.add_argument("what", type=str, nargs="+", help=WHAT)
        parser.add_function_arguments(compare, as_group=False, skip={"what"})
        parser.add_argument("--show", type=list[str], default=["accuracy"], help=SHOW)
        first = argparse.ArgumentParser(add_help=False)
        first.add_argument("what", nargs="*")
        named, _ = first.parse_known_args(args)
        run = next((what for what in named.what if is_run(what)), None)
        if run and not {"-h", "--help"} & set(args):
            parser.set_defaults(_settings(run))
        options = parser.parse_args(args).as_dict()
        if run:
            _check_named(options, args, Path(run) / CONFIG)
        own = [*metrics_of(views_of(options["views"])), *options["metrics"]]
        shown = [*dict.fromkeys([*options.pop("show"), *own])]
        for metric in shown:
            if metric not in (*METRICS, *own):
                raise unknown("measure", metric, [*METRICS, *own])
        report = compare(**options)
        if processes.rank() == 0:
            folder = report_folder(options["what"], options["out"])
            for kind in OF_THEIR_OWN:
                shown += [name for name in kind if report.of(kind[-1]) and name not in shown]
            print_report(report, folder, shown)
        return report


WHAT = (
    "models, each a run folder, a .safetensors or .ckpt file, open_clip:NAME/TAG or timm:NAME; or "
    "logits or predictions (.npz, .parquet, .csv) of a model that cannot be loaded here; or "
    "the report.json of models that were evaluated by the same protocol"
)
SHOW = "measures to print, such as accuracy,nll,ece, beside those of one's own"


# Options whose values are lists.
LISTS = (
    "--shifts",
    "--show",
    "--metrics",
    "--unknown",
    "--corrupt",
    "--views",
    "--tasks",
    "--against",
)

# Measures of unknown classes, of ladders and of tasks, printed where the last of them is there.
OF_THEIR_OWN = (
    ("auroc_max_logit", "oscr_max_logit"),
    ("scale_drop", "failure_point"),
    ("task_accuracy", "task_change"),
)

# Settings that may hold import paths.
OF_CODE = ("shifts", "metrics", "unknown", "views")


def _check_named(options: dict[str, Any], args: Sequence[str], source: Path) -> None:
    """Refuse code that the config of a run names and the command does not, unless it is trusted.

    Raises:
        InputError: it is not trusted.
    """
    for setting in OF_CODE:
        names = [str(name) for name in options[setting]]
        # Of sets, the family is the code; a folder is none.
        names = [name.partition("/")[0] for name in names] if setting == "shifts" else names
        said = [word for option, word in itertools.pairwise(args) if option == f"--{setting}"]
        for path in filter(is_path, names):
            if any(path in word for word in said):
                continue
            if not options["trust"]:
                raise InputError(
                    f"Refused {source}: it names {path} in {setting}, which is code of its maker. "
                    f"Name it in the command with --{setting}, or give --trust true."
                )
            import_trusted(path, source)


# Not read from a config: a run from elsewhere chooses no place to write and trusts nobody.
OF_THE_COMMAND = ("what", "out", "trust")


def _settings(run: str) -> dict[str, object]:
    """The settings of evaluation in a run's config, without its output folder and trust.

    Older configs have the alphas under another name.
    """
    config: Any = RunFolder(run).config()
    found = config.get("evaluation", {}) if isinstance(config, dict) else None
    if not isinstance(found, dict):
        raise InputError(
            f"Expected settings by name under evaluation in {Path(run) / CONFIG}, but got "
            f"{found!r:.50}."
        )
    settings = {"wise" if name == "alphas" else name: value for name, value in found.items()}
    known = [*inspect.signature(compare).parameters, *(f.name for f in fields(Evaluation))]
    for name in settings:
        if name not in known:
            raise unknown(f"setting of evaluation in {Path(run) / CONFIG}", str(name), known)
    return {name: value for name, value in settings.items() if name not in OF_THE_COMMAND}
