"""Per image: a measure of a model on every image once, on any number of processes, resumable.

Images are taken in stretches whose borders depend on their number alone, so that one process and
many compute the same, and what a stretch gave is kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfmask import processes
from cfmask.files import write_whole
from cfmask.inference.answer_store import checksum, key_of
from cfmask.missingness.object_masks import Example

# Images of a stretch at most; all of them are in memory at a time.
STRETCH = 32


class Images(Protocol):
    """Images with labels and masks, N of them.

    Attributes:
        masked: all have a mask.
        labelled: all have a label.
    """

    masked: bool
    labelled: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


# Images of a stretch and the number of its first -> tensors (n, …) by name, one row an image.
Measure = Callable[[Sequence[Example], int], dict[str, Tensor]]


def per_image(
    measure: Measure, data: Images, key: str, store: Path | None, what: str, progress: bool
) -> dict[str, Tensor]:
    """What a measure gives for all images, in every process.

    Args:
        measure: of the images of a stretch.
        data: the images.
        key: stands for all that the measure depends on, but for the images.
        store: folder where the rows of each stretch are kept and looked for; None keeps none.
        what: it is, for the bar.
        progress: show a bar.

    Returns:
        Tensors (N, …) by name, sorted, in the order of the images.

    Raises:
        InputError: in all processes, what the images or the measure raise in one.
    """
    number = -(-len(data) // STRETCH)
    borders = [k * len(data) // number for k in range(number + 1)]

    def one(k: int) -> dict[str, Tensor]:
        first, end = borders[k], borders[k + 1]
        examples = [data[i] for i in range(first, end)]
        if store is None:
            return measure(examples, first)
        return _kept(lambda: measure(examples, first), store, key_of(key, _identity(examples)))

    def mine() -> list[dict[str, Tensor]]:
        shown = progress and processes.rank() == 0
        own = processes.own_part(number)
        return [one(k) for k in track(own, what, disable=not shown, transient=True)]

    rows = [row for part in processes.gathered(mine) for row in part]
    return {name: torch.cat([row[name] for row in rows]) for name in sorted(rows[0])}


def _kept(make: Callable[[], dict[str, Tensor]], store: Path, key: str) -> dict[str, Tensor]:
    """Tensors of a file, or those that are made now and written to it."""
    path = store / f"{key[:32]}.safetensors"
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
            tensors: dict[str, Tensor] = load_file(path)
            if facts.get("checksum") == checksum(tensors, key):
                return tensors
        except (OSError, SafetensorError):
            # A damaged file is written again.
            pass
    made = {name: value.cpu().contiguous() for name, value in make().items()}
    facts = {"checksum": checksum(made, key)}
    write_whole(path, lambda file: save_file(made, file, facts))
    return made


def _identity(examples: Sequence[Example]) -> str:
    """Key of images: their pixels, labels, masks and own segments."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.label, tuple(example.image.shape))).encode())
        digest.update(example.image.contiguous().numpy().data)
        for part in (example.saliency, *example.segments.values()):
            if part is not None:
                digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()
