"""The command cfmask predict: a model and pictures -> the likeliest classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Column, Table

from cfmask.commands.parser import command
from cfmask.errors import InputError, visible
from cfmask.exporting.predicting import Prediction, predict, write_csv
from cfmask.terminal import say, show_table


def predict_images(args: Sequence[str]) -> None:
    """Name the classes of pictures: the whole of ``cfmask predict``.

    Args:
        args: command line without the program.
    """
    logging.getLogger("timm").setLevel(logging.WARNING)
    with command("cfmask predict", "Name the likeliest classes.") as parser:
        parser.add_argument("model", type=str, help="run folder, exported folder or file")
        parser.add_argument("images", type=str, nargs="+", help="picture files, or folders of them")
        parser.add_function_arguments(predict, as_group=False, skip={"model", "images"})
        parser.add_argument("--out", type=Path, default=None, help="CSV file to write")
        parser.add_argument("--json", type=bool, default=False, help="print JSON")
        options = parser.parse_args(args).as_dict()
        as_json, out = options.pop("json"), options.pop("out")
        found = predict(**options)
        if out is not None:
            _write(found, out, options["top"], options["descriptions"] is not None)
        elif as_json:
            print(_json(list(found)))
        else:
            _print(list(found))


def _write(found: Iterator[Prediction], out: Path, top: int, described: bool) -> None:
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"Expected --out to be a .csv file, but got {out}.")
    count, faults = write_csv(found, out, top, described)
    say(f"{out}: {count:,} pictures, {faults:,} of which could not be read.")


def _json(found: Sequence[Prediction]) -> str:
    rows = [
        {
            "image": one.file,
            "classes": [{"name": name, "probability": p} for name, p in one.classes],
            **({"unreadable": one.fault} if one.fault else {}),
            **({"descriptors": _pairs(one)} if one.descriptors else {}),
        }
        for one in found
    ]
    return json.dumps(rows, indent=1)


def _pairs(one: Prediction) -> list[dict[str, str | float]]:
    return [{"text": text, "cosine": cosine} for text, cosine in one.descriptors]


def _print(found: Sequence[Prediction]) -> None:
    places = [str(place + 1) for place in range(max(len(one.classes) for one in found))]
    heads = [Column(head, overflow="fold") for head in ("image", *places)]
    table = Table(*heads, title="Likeliest classes, probability in %")
    for one in found:
        cells = [f"{visible(name)} {100 * share:.1f}" for name, share in one.classes]
        table.add_row(visible(one.file), *(cells or ["not readable"]))
    show_table(table)
    for one in found:
        if one.descriptors:
            _explain(one)


def _explain(one: Prediction) -> None:
    """Print the descriptors of the likeliest class with their cosines."""
    title = f"{visible(one.file)}: descriptors of {visible(one.classes[0][0])}"
    table = Table(Column("descriptor", overflow="fold"), Column("cosine", justify="right"))
    table.title = title
    for text, cosine in one.descriptors:
        table.add_row(visible(text), f"{cosine:.3f}")
    show_table(table)
