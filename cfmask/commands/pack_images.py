"""The command cfmask pack: an image folder -> shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cfmask.commands.parser import command
from cfmask.data.packing import pack, verify
from cfmask.errors import InputError
from cfmask.terminal import say


def pack_images(args: Sequence[str]) -> None:
    """The command ``cfmask pack``.

    Args:
        args: command line without the program.
    """
    with command("cfmask pack", __doc__) as parser:
        parser.add_argument("folder", type=Path, help="image folder; or the shards to verify")
        parser.add_argument("--out", type=Path, default=None, help="new folder for the shards")
        parser.add_argument("--shard_size", type=int, default=1000, help="images a shard")
        parser.add_argument(
            "--workers",
            type=int,
            default=os.cpu_count() or 1,
            help="processes; one a core by default",
        )
        parser.add_argument(
            "--verify", type=bool, default=False, help="read shards against their index"
        )
        options = parser.parse_args(args)
        if options.verify:
            index, done = verify(options.folder, options.workers), "as packed, all readable"
        elif options.out is None:
            raise InputError("Expected --out with a new folder for the shards, but got none.")
        else:
            index = pack(options.folder, options.out, options.shard_size, options.workers)
            done = f"in {options.out}"
        size = sum(shard.bytes for shard in index.shards) / 1e6
        say(
            f"{len(index)} images of {len(index.classes)} classes in {len(index.shards)} shards, "
            f"{size:.1f} MB, {done}."
        )
