"""Sheet: pictures of several images as one, a row for each.

Letters: N images, R pictures a row, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.errors import visible
from cfmask.files import write_whole
from cfmask.reporting.escapes import drawing

Columns = dict[str, Tensor]


PAD = 2


def sheet(pictures: Columns) -> Tensor:
    """All pictures as one, float (3, N · (H + 4), R · (W + 4)): a row for each image."""
    tiles = [F.pad(_colours(column), (PAD,) * 4, value=1.0) for column in pictures.values()]
    return torch.cat([torch.cat(list(column), dim=1) for column in tiles], dim=2)


def draw(path: Path, pictures: Columns, names: Sequence[str]) -> None:
    """Write all pictures as one PNG with titles, and a name before each row.

    Args:
        path: file to write.
        pictures: columns by title; see `sheet`.
        names: N texts.
    """
    from matplotlib.figure import Figure

    whole = sheet(pictures)
    wide, high = whole.shape[2] / len(pictures), whole.shape[1] / len(names)
    with drawing():
        figure = Figure(figsize=(1.5 * len(pictures), 1.5 * len(names) * high / wide))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(whole.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_xticks([(i + 0.5) * wide for i in range(len(pictures))], list(pictures))
        texts = [visible(name, lines=True) for name in names]
        axes.set_yticks([(i + 0.5) * high for i in range(len(names))], texts)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9)
        axes.spines[:].set_visible(False)
        # The pictures fill the figure; saving enlarges it by the room of the names.
        how: dict[str, Any] = {"dpi": 110, "bbox_inches": "tight", "pad_inches": 0.05}
        write_whole(path, lambda file: figure.savefig(file, format="png", **how))


def _colours(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as they are; maps (N, 1, H, W) in [0, 1] in false colours."""
    from matplotlib import colormaps

    if pictures.shape[1] == 3:
        return pictures
    colours = torch.tensor(colormaps["magma"](pictures[:, 0].numpy()))[..., :3]
    return colours.permute(0, 3, 1, 2).float()
