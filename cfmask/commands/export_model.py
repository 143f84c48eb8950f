"""The command cfmask export: a run -> a folder that another tool opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfmask.commands.parser import command
from cfmask.exporting.writing import export, push
from cfmask.terminal import say


def export_run(args: Sequence[str]) -> None:
    """Export a run: the whole of ``cfmask export``.

    Args:
        args: command line without the program.
    """
    what = "Write a run's model in another tool's format, load it back and compare."
    with command("cfmask export", what) as parser:
        parser.add_argument("run", type=str, help="run folder")
        parser.add_function_arguments(export, as_group=False, skip={"run", "average"})
        parser.add_argument(
            "--average",
            type=str,
            nargs="+",
            default=[],
            help="further runs, for the mean of all weights",
        )
        parser.add_argument("--push", type=str, help="owner/name on the Hugging Face Hub")
        options = parser.parse_args(args).as_dict()
        repo = options.pop("push")
        provenance = export(**options)
        say(f"{options['out']}/: {provenance.weights}. {provenance.agreement}")
        if repo:
            say(f"Pushed to {push(Path(options['out']), repo)}")
