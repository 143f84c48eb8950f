"""Gallery: pictures of what masks and fills do to images.

Letters: N images, R pictures a row, (H, W) pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import Counterfactual, pixels
from cfmask.methods import MaskedDistillation
from cfmask.relevance import Relevance

Columns = dict[str, Tensor]
GALLERY = "gallery"
PAD = 2
ROWS = 8


def columns(
    classifier: Classifier,
    relevance: Relevance,
    counterfactuals: Sequence[Counterfactual],
    images: Tensor,
    labels: Tensor,
    donors: Tensor | None = None,
) -> Columns:
    """Pictures of each image, by what they show: image, relevance, each mask and what it makes.

    Args:
        classifier: the model to explain; left as it was.
        relevance: what makes the maps.
        counterfactuals: masks and fills.
        images: float (N, 3, H, W) in [0, 1].
        labels: int64 (N,), the true classes.
        donors: float (M, 3, H, W) in [0, 1], further images that refills may take from.

    Returns:
        float (N, 3, H, W) or (N, 1, H, W) in [0, 1], on the CPU.

    Raises:
        InputError: what relevance, masks and fills raise.
    """
    _, maps = relevance.explain(classifier, images, labels)
    found = {"image": images, "relevance": F.interpolate(maps.unsqueeze(1), images.shape[2:])}
    pool = images if donors is None else torch.cat([images, donors])
    padded = torch.cat([maps, maps.new_zeros(len(pool) - len(maps), *maps.shape[1:])])
    for k, make in enumerate(map(_local, counterfactuals), 1):
        filled, replaced = (part[: len(images)] for part in make(pool, padded))
        visible = images.where(~pixels(replaced, images), images.new_tensor(0.5))
        number = f" {k}" if len(counterfactuals) > 1 else ""
        found[f"mask{number}"] = visible
        if not make.fill.removes:
            found[f"counterfactual{number}"] = filled
    return {name: pictures.detach().float().cpu().clamp(0, 1) for name, pictures in found.items()}


def sheet(pictures: Columns) -> Tensor:
    """All pictures as one, float (3, N · (H + 4), R · (W + 4)): a row for each image."""
    tiles = [F.pad(_colours(column), (PAD,) * 4, value=1.0) for column in pictures.values()]
    return torch.cat([torch.cat(list(column), dim=1) for column in tiles], dim=2)


def draw(path: Path, pictures: Columns, names: Sequence[str]) -> None:
    """Write all pictures as one PNG with titles, and a name before each row.

    Args:
        path: file to write.
        pictures: see `columns`.
        names: N texts.
    """
    from matplotlib.figure import Figure

    whole = sheet(pictures)
    wide, high = whole.shape[2] / len(pictures), whole.shape[1] / len(names)
    figure = Figure(
        figsize=(1.5 * len(pictures), 1.5 * len(names) * high / wide + 0.4), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.imshow(whole.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([(i + 0.5) * wide for i in range(len(pictures))], list(pictures), fontsize=9)
    axes.set_yticks([(i + 0.5) * high for i in range(len(names))], names, fontsize=9)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
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


class EpochGallery(pl.Callback):
    """After each epoch, a picture of what the method does to some validation images.

    It goes to `<folder>/epoch_<number>.png` and to TensorBoard, for methods that mask. The images
    and the chance in masks and fills are the same in each epoch; training draws as if there were no
    picture.

    Args:
        folder: where the pictures go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chosen: tuple[Tensor, Tensor] | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `Callback.on_train_epoch_end`; the epoch has been validated already."""
        if not trainer.is_global_zero or not isinstance(pl_module, MaskedDistillation):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._chosen = self._chosen or first_of_each_class(data.val_set, ROWS)
        images, labels = (part.to(pl_module.device) for part in self._chosen)
        if len(labels) > 1:
            with trainer.precision_plugin.forward_context():
                whole = sheet(of_method(pl_module, pl_module.classifier, images, labels))
            self._keep(trainer, (whole * 255).round().to(torch.uint8))

    def _keep(self, trainer: pl.Trainer, whole: Tensor) -> None:
        """Write and log a picture uint8 (3, H, W)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(whole.permute(1, 2, 0).numpy())
        picture.save(self.folder / f"epoch_{trainer.current_epoch}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(GALLERY, whole, trainer.global_step)


def of_method(
    method: MaskedDistillation, classifier: Classifier, images: Tensor, labels: Tensor
) -> Columns:
    """Columns of a method's own relevance, masks and fills, with a chance of their own.

    Args:
        method: whose relevance and counterfactuals are shown.
        classifier: the model to explain; in eval mode for the time.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """
    modes = {module: module.training for module in classifier.modules()}
    cuda = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(0)
        classifier.eval()
        found = columns(
            classifier, method.relevance, method.counterfactuals, images.float() / 255, labels
        )
    for module, training in modes.items():
        module.training = training
    return found


def _local(make: Counterfactual) -> Counterfactual:
    """The same, but never with donors of other processes: these draw no pictures."""
    fill: Any = copy.copy(make.fill)
    if getattr(fill, "donors", None) == "all":
        fill.donors = "device"
    return Counterfactual(make.mask, fill)


def _colours(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as they are; maps (N, 1, H, W) in [0, 1] in false colours."""
    from matplotlib import colormaps

    if pictures.shape[1] == 3:
        return pictures
    colours = torch.tensor(colormaps["magma"](pictures[:, 0]))[..., :3]
    return colours.permute(0, 3, 1, 2).float()
