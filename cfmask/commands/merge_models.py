"""The command cfmask merge: several tuned models -> one weights file."""

from __future__ import annotations

from collections.abc import Sequence

from cfmask.commands.parser import command
from cfmask.merging.merge import merge
from cfmask.terminal import say


def merge_models(args: Sequence[str]) -> None:
    """Merge models: the whole of ``cfmask merge``.

    Args:
        args: command line without the program.
    """
    what = "Make one model of several that were tuned from one starting point."
    with command("cfmask merge", what) as parser:
        parser.add_argument("what", type=str, nargs="+", help="run folders or weights files")
        parser.add_function_arguments(merge, as_group=False, skip={"what"})
        options = parser.parse_args(args).as_dict()
        provenance = merge(**options)
        say(f"{options['out']}/: {provenance.weights}. {provenance.agreement}")
        for name, share in provenance.merged.get("validation accuracy", {}).items():
            kept = "kept" if name in provenance.merged["kept"] else "left out"
            say(f"  {name}: {100 * share:.1f} % on the validation images, {kept}")
