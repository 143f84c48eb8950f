"""The command cfmask refit: a model and curated images -> the model with another last layer."""

from __future__ import annotations

from collections.abc import Sequence

from cfmask.commands.parser import command
from cfmask.merging.refit import AFTER, BEFORE, refit
from cfmask.reporting.report import ShiftReport
from cfmask.terminal import say, show_table


def refit_head(args: Sequence[str]) -> None:
    """Fit a last layer anew: the whole of ``cfmask refit``.

    Args:
        args: command line without the program.
    """
    what = "Fit the last layer of a model anew, to curated images."
    with command("cfmask refit", what) as parser:
        parser.add_argument("what", type=str, help="run folder or weights file")
        parser.add_function_arguments(refit, as_group=False, skip={"what"})
        options = parser.parse_args(args).as_dict()
        made = refit(**options)
        report = made.report
        assert report is not None
        measures = ["accuracy", "group_mean", "worst_group"]
        for metric in measures if report.of("worst_group") else measures[:1]:
            show_table(report.table(metric))
        _say_groups(report)
        say(f"{options['out']}/: {made.weights}. {made.agreement}")


def _say_groups(report: ShiftReport) -> None:
    """The accuracy of each group on the held-out images, before and after."""
    (name,) = report.sets
    before, after = (report.details[row][name].get("groups", {}) for row in (BEFORE, AFTER))
    rows = zip(*(before.get(key, []) for key in ("names", "correct", "total")))
    for (group, right, total), now in zip(rows, after.get("correct", [])):
        say(f"  {group}: {100 * right / total:.1f} -> {100 * now / total:.1f} % of {total} images")
