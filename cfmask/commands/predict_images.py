"""The command cfmask predict: a model and pictures -> the likeliest classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence

from rich.table import Column, Table

from cfmask.commands.parser import OneLineParser, one_line_errors, quiet
from cfmask.decoding import read_image
from cfmask.errors import InputError, visible
from cfmask.exporting.reading import open_model
from cfmask.terminal import show_table

BATCH = 32


def predict(
    model: str,
    images: Sequence[str],
    top: int = 5,
    class_names: list[str] | None = None,
    trust: bool = False,
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """The likeliest classes of pictures.

    Args:
        model: run folder, exported folder or file, training checkpoint.
        images: picture files.
        top: how many classes a picture.
        class_names: names in place of the stored ones; an open_clip folder becomes a zero-shot
            classifier of them.
        trust: open .pt2 files, which can execute code; import the class that weights name; ask the
            network for parts that an open_clip folder lacks.

    Yields:
        File, and its classes with their probabilities in [0, 1], the likeliest first.

    Raises:
        InputError: see `open_model`; a picture that cannot be read; `top` below 1.
    """
    if top < 1:
        raise InputError(f"Expected at least 1 class a picture, but got {top}.")
    predictor = open_model(model, class_names, trust)
    for start in range(0, len(images), BATCH):
        files = images[start : start + BATCH]
        misfit = predictor.preprocess.misfit
        shares = predictor([read_image(file, misfit=misfit) for file in files])
        values, order = shares.topk(min(top, shares.shape[1]))
        for file, row, best in zip(files, values.tolist(), order.tolist()):
            yield file, [(predictor.class_names[k], share) for k, share in zip(best, row)]


def predict_images(args: Sequence[str] | None = None) -> None:
    """Name the classes of pictures: the whole of ``cfmask predict``.

    Args:
        args: command line without the program; the process's own by default.
    """
    quiet()
    logging.getLogger("timm").setLevel(logging.WARNING)
    with one_line_errors():
        parser = OneLineParser(prog="cfmask predict", description="Name the likeliest classes.")
        parser.add_argument("model", type=str, help="run folder, exported folder or file")
        parser.add_argument("images", type=str, nargs="+", help="picture files")
        parser.add_function_arguments(predict, as_group=False, skip={"model", "images"})
        parser.add_argument("--json", type=bool, default=False, help="print JSON")
        options = parser.parse_args(args).as_dict()
        as_json = options.pop("json")
        found = list(predict(**options))
        print(_json(found)) if as_json else _print(found)


def _json(found: Sequence[tuple[str, list[tuple[str, float]]]]) -> str:
    rows = [
        {"image": file, "classes": [{"name": name, "probability": p} for name, p in best]}
        for file, best in found
    ]
    return json.dumps(rows, indent=1)


def _print(found: Sequence[tuple[str, list[tuple[str, float]]]]) -> None:
    places = [str(place + 1) for place in range(len(found[0][1]))]
    heads = [Column(head, overflow="fold") for head in ("image", *places)]
    table = Table(*heads, title="Likeliest classes, probability in %")
    for file, best in found:
        table.add_row(
            visible(file), *(f"{visible(name)} {100 * share:.1f}" for name, share in best)
        )
    show_table(table)
