"""The command eval.py: models and sets -> report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cfmask.check_command import check_data
from cfmask.command import OneLineParser, one_line_errors, print_table, quiet
from cfmask.run_folder import RunFolder


def evaluate_run(args: Sequence[str] | None = None) -> None:
    """Evaluate a run folder: the whole of ``eval.py``. What is not given is taken from the run.

    Args:
        args: command line without the program; the process's own by default.
    """
    quiet()
    args = sys.argv[1:] if args is None else list(args)
    if "--check" in args:
        return check_data(args)
    with one_line_errors():
        parser = OneLineParser(
            prog="eval.py",
            description="Evaluate a run under shift. Checks sets: eval.py --check --help.",
        )
        parser.add_argument("run", type=str, help="run folder")
        parser.add_method_arguments(RunFolder, "evaluate", as_group=False)
        first = argparse.ArgumentParser(add_help=False)
        first.add_argument("run", nargs="?")
        run = first.parse_known_args(args)[0].run
        if run and not {"-h", "--help"} & set(args):
            parser.set_defaults(RunFolder(run).config()["evaluation"])
        options = parser.parse_args(args).as_dict()
        folder = RunFolder(options.pop("run"))
        print_table(folder.evaluate(**options).table(), folder.path)
