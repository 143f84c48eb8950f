"""The command cfmask predict: a model and pictures -> the likeliest classes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Column, Table

from cfmask import processes
from cfmask.commands.parser import command
from cfmask.errors import InputError, at_least, visible
from cfmask.exporting.predicting import (
    Prediction,
    Unreadable,
    found_pictures,
    predictions,
    write_csv,
)
from cfmask.exporting.reading import open_model
from cfmask.terminal import say, show_table


def predict(
    model: str,
    images: Sequence[str],
    top: int = 5,
    class_names: list[str] | None = None,
    trust: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    unreadable: Unreadable = "stop",
) -> Iterator[Prediction]:
    """The likeliest classes of pictures, on the GPU if there is one.

    Args:
        model: run folder, exported folder or file, training checkpoint.
        images: picture files, and folders of them.
        top: how many classes a picture.
        class_names: names in place of the stored ones; an open_clip folder becomes a zero-shot
            classifier of them.
        trust: open .pt2 files, which can execute code; import the class that weights name; ask the
            network for parts that an open_clip folder lacks.
        batch_size: pictures at a time.
        workers: processes that read pictures; 0 reads in this one.
        unreadable: stop at a picture that cannot be read, or name what is wrong with it.

    Raises:
        InputError: see `open_model`; a picture that cannot be read; `top` below 1.
    """
    if top < 1:
        raise InputError(f"Expected at least 1 class a picture, but got {top}.")
    at_least(1, batch_size, "picture at a time (batch_size)")
    at_least(0, workers, "workers")
    predictor = open_model(model, class_names, trust).to(processes.device())
    files = found_pictures(images)
    bar = len(files) > batch_size and sys.stdout.isatty()
    yield from predictions(predictor, files, top, batch_size, workers, unreadable, bar)


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
            _write(found, out, options["top"])
        elif as_json:
            print(_json(list(found)))
        else:
            _print(list(found))


def _write(found: Iterator[Prediction], out: Path, top: int) -> None:
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"Expected --out to be a .csv file, but got {out}.")
    count, faults = write_csv(found, out, top)
    say(f"{out}: {count:,} pictures, {faults:,} of which could not be read.")


def _json(found: Sequence[Prediction]) -> str:
    rows = [
        {
            "image": one.file,
            "classes": [{"name": name, "probability": p} for name, p in one.classes],
            **({"unreadable": one.fault} if one.fault else {}),
        }
        for one in found
    ]
    return json.dumps(rows, indent=1)


def _print(found: Sequence[Prediction]) -> None:
    places = [str(place + 1) for place in range(max(len(one.classes) for one in found))]
    heads = [Column(head, overflow="fold") for head in ("image", *places)]
    table = Table(*heads, title="Likeliest classes, probability in %")
    for one in found:
        cells = [f"{visible(name)} {100 * share:.1f}" for name, share in one.classes]
        table.add_row(visible(one.file), *(cells or ["not readable"]))
    show_table(table)
