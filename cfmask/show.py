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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * len(columns), 1.45 * len(names) + 0.3), layout="constrained")
    grid: Any = figure.subplots(len(names), len(columns), squeeze=False)
    for j, (title, pictures) in enumerate(columns.items()):
        for i, picture in enumerate(pictures):
            axes = grid[i][j]
            axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).cpu(), vmin=0, vmax=1, cmap="magma")
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_title(title, fontsize=9)
            if j == 0:
                axes.set_ylabel(names[i], fontsize=9)
    figure.savefig(path, dpi=110)


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
