"""Predictions: a model's answer to every image of a set, as Parquet files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers
from cfmask.files import whole_file


def parquet() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            "Expected pyarrow to write predictions, but it is not installed: "
            "pip install 'cfmask[predictions]'."
        ) from error


# Adds the rows of B images: their paths, the answers to them, and float logits (B, C).
Add = Callable[[Sequence[str], Answers, Tensor], None]


@contextlib.contextmanager
def prediction_file(path: Path, classes: Sequence[int], views: Sequence[str] = ()) -> Iterator[Add]:
    """Context with a function that adds rows to a Parquet file, one for each image.

    Columns: `path`, `label` (as the set gives it), `readable`, `correct`, `confidence`, `top5`
    (classes of the head by falling logit), `logits` (float32, of the classes that compete), and
    float32 by the names of the columns of views, empty where a model has none.
    The metadata hold the numbers of those classes as JSON, under `classes`.

    Args:
        path: the file; it is removed if writing it fails.
        classes: numbers of the C competing classes, in the order of the logits.
        views: names of the columns of views, `view/column`.
    """
    pa, pq = parquet()
    columns: dict[str, Any] = {
        "path": pa.string(),
        "label": pa.int64(),
        "readable": pa.bool_(),
        "correct": pa.bool_(),
        "confidence": pa.float32(),
        "top5": pa.list_(pa.int64()),
        "logits": pa.list_(pa.float32(), len(classes)),
        **{name: pa.float32() for name in views},
    }
    schema = pa.schema(list(columns.items()), {"classes": json.dumps(list(classes))})

    def add(paths: Sequence[str], answers: Answers, logits: Tensor) -> None:
        assert answers.confidence is not None
        values: Tensor = logits.float().cpu().contiguous().view(-1)
        flat = pa.array(values.numpy(), pa.float32())
        none = pa.nulls(len(paths), pa.float32())
        content = [
            # Bytes that are not UTF-8 become escapes.
            [path.encode("utf-8", "backslashreplace").decode() for path in paths],
            *(getattr(answers, name).numpy() for name in ("labels", "readable", "correct")),
            answers.confidence.numpy(),
            answers.best.tolist(),
            pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
            *(
                answers.views[name].float().numpy() if name in answers.views else none
                for name in views
            ),
        ]
        writer.write_batch(pa.record_batch(content, schema=schema))

    with whole_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        yield add


def join_parts(parts: Sequence[Path], path: Path, key: str) -> None:
    """Join files of the same columns in their order, batch by batch, and remove them.

    The metadata of the whole get the `key` of all that the predictions depend on.
    """
    _, pq = parquet()
    schema = pq.read_schema(parts[0])
    schema = schema.with_metadata({**schema.metadata, "key": key})
    with whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch)
    for part in parts:
        part.unlink()


def key_in(path: Path) -> str:
    """The key of a file of predictions; empty if there is none or it cannot be read."""
    pa, pq = parquet()
    # Reading a pipe would block.
    if not path.is_file():
        return ""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return ""
    return bytes(metadata.get(b"key", b"")).decode(errors="replace")
