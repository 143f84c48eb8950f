"""The command eval.py --check: which image sets lie under a folder, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cfmask.commands.parser import command
from cfmask.shifts.inventory import SetCheck, absent_lines, check_sets, check_table
from cfmask.terminal import say, show_table


def check_data(args: Sequence[str]) -> None:
    """List the published sets under a folder; exit with code 1 if one that is there is not right.

    Args:
        args: command line without the program, with `--check` among it.
    """
    with command("eval.py --check", "Check sets before their use.") as parser:
        parser.add_argument("--check", action="store_true", help="this command")
        parser.add_argument("--data_root", type=str, required=True, help="folder with the sets")
        parser.add_argument("--shifts", type=list[str], default=[], help="only these sets")
        parser.add_argument("--verify", action="store_true", help="decode every image")
        parser.add_argument("--workers", type=int, default=0, help="processes that decode")
        options = parser.parse_args(list(args))
        root = Path(options.data_root)
        bar = sys.stdout.isatty()
        checks = check_sets(root, options.shifts, options.verify, options.workers, bar)
        _show(checks)
    if any(check.path is not None and not check.ok for check in checks):
        raise SystemExit(1)


def _show(checks: Sequence[SetCheck]) -> None:
    """What is there, what is not, and the path of every image that cannot be decoded."""
    there = [check for check in checks if check.path is not None]
    if there:
        show_table(check_table(checks))
    for line in absent_lines(checks):
        say(f"not there: {line}")
    for check in checks:
        for path in check.unreadable:
            say(f"cannot decode {path}")
    right = sum(check.ok for check in there)
    say(f"{len(there)} of {len(checks)} sets are there, {right} of them with nothing wrong.")
