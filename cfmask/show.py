"""Show: pictures of what the method does to images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import Counterfactual, pixels
from cfmask.relevance import Relevance


def draw_gallery(
    path: Path,
    classifier: Classifier,
    relevance: Relevance,
    counterfactual: Counterfactual,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Write a picture with one row an image: image, relevance, mask, counterfactual.

    Args:
        path: PNG to write.
        classifier: the model to explain; left as it was.
        relevance: what makes the maps.
        counterfactual: mask and fill.
        images: float (B, 3, H, W) in [0, 1], at least 2.
        labels: int64 (B,), the true classes.
    """
    _, maps = relevance.explain(classifier, images, labels)
    filled, replaced = counterfactual(images, maps)
    visible = images.where(~pixels(replaced, images), images.new_tensor(0.5))
    columns = {
        "image": images,
        "relevance": F.interpolate(maps.unsqueeze(1), images.shape[2:]),
        "mask": visible,
        "counterfactual": filled,
    }
    _draw(path, columns, [classifier.class_names[k] for k in labels.tolist()])


def _draw(path: Path, columns: Mapping[str, Tensor], names: list[str]) -> None:
    """One picture of all: a column for each kind, a row for each image."""
    from matplotlib.figure import Figure

    pad = 2
    tiles = [F.pad(_colours(pictures), (pad,) * 4, value=1.0) for pictures in columns.values()]
    sheet = torch.cat([torch.cat(list(column), dim=1) for column in tiles], dim=2)
    high, wide = tiles[0].shape[2:]
    figure = Figure(
        figsize=(1.5 * len(columns), 1.5 * len(names) * high / wide + 0.4), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.imshow(sheet.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([(i + 0.5) * wide for i in range(len(columns))], list(columns), fontsize=9)
    axes.set_yticks([(i + 0.5) * high for i in range(len(names))], names, fontsize=9)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


def _colours(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as they are; maps (N, 1, H, W) in [0, 1] in false colours."""
    from matplotlib import colormaps

    pictures = pictures.detach().cpu().clamp(0, 1)
    if pictures.shape[1] == 3:
        return pictures
    colours = torch.tensor(colormaps["magma"](pictures[:, 0]))[..., :3]
    return colours.permute(0, 3, 1, 2).float()


def first_of_each_class(data: Any, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` images uint8 (N, 3, H, W) of a dataset with their labels, one a class."""
    seen: dict[int, Tensor] = {}
    for index in range(min(len(data), 50 * count)):
        image, label = data[index]
        seen.setdefault(label, image)
        if len(seen) == count:
            break
    labels = sorted(seen)
    return torch.stack([seen[k] for k in labels]), torch.tensor(labels)
