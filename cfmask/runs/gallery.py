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
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.counterfactual import Counterfactual, pixels
from cfmask.errors import InputError
from cfmask.files import write_whole
from cfmask.methods import MaskedDistillation
from cfmask.relevance import Relevance
from cfmask.reporting.sheet import Columns, sheet

GALLERY = "gallery"
ROWS = 8


def columns(
    classifier: Classifier,
    relevance: Relevance | None,
    counterfactuals: Sequence[Counterfactual],
    images: Tensor,
    labels: Tensor,
    donors: Tensor | None = None,
) -> Columns:
    """Pictures of each image, by what they show: image, relevance, each mask and what it makes.

    Args:
        classifier: the model to explain; left as it was.
        relevance: what makes the maps; None for masks that need none, and no picture of it.
        counterfactuals: masks and fills.
        images: float (N, 3, H, W) in [0, 1].
        labels: int64 (N,), the true classes.
        donors: float (M, 3, H, W) in [0, 1], further images that refills may take from.

    Returns:
        float (N, 3, H, W) or (N, 1, H, W) in [0, 1], on the CPU.

    Raises:
        InputError: what relevance, masks and fills raise.
    """
    found, maps = {"image": images}, images.new_zeros(len(images), *classifier.grid)
    if relevance is not None:
        _, maps = relevance.explain(classifier, images, labels)
        found["relevance"] = F.interpolate(maps.unsqueeze(1), images.shape[2:])
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
    and the random choices of masks and fills are the same in each epoch; the random numbers of
    training are untouched.

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
                found = of_method(pl_module, pl_module.classifier, images, labels)
            if found:
                self._keep(trainer, (sheet(found) * 255).round().to(torch.uint8))

    def _keep(self, trainer: pl.Trainer, whole: Tensor) -> None:
        """Write and log a picture uint8 (3, H, W)."""
        picture = Image.fromarray(whole.permute(1, 2, 0).numpy())
        place = self.folder / f"epoch_{trainer.current_epoch}.png"
        write_whole(place, lambda file: picture.save(file, "PNG"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(GALLERY, whole, trainer.global_step)


def of_method(
    method: MaskedDistillation, classifier: Classifier, images: Tensor, labels: Tensor
) -> Columns | None:
    """Columns of a method's own relevance, masks and fills, under a random seed of their own.

    A picture ends no run: where these images cannot be explained, as by maps that were saved of the
    training images alone, a warning says so and there is none.

    Args:
        method: whose relevance and counterfactuals are shown.
        classifier: the model to explain; in eval mode for the time.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """
    made, relevance = method.counterfactuals, _readable(method, classifier)
    modes = {module: module.training for module in classifier.modules()}
    cuda = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(0)
        classifier.eval()
        try:
            return columns(classifier, relevance, made, images.float() / 255, labels)
        except InputError as error:
            rank_zero_warn(f"No gallery of these images: {error}")
            return None
        finally:
            for module, training in modes.items():
                module.training = training


def _readable(method: MaskedDistillation, classifier: Classifier) -> Relevance | None:
    """The method's relevance; none if no mask needs it and the classifier has nothing to read."""
    try:
        method.relevance.check(classifier)
    except InputError:
        if method.explained:
            raise
        return None
    return method.relevance


def _local(make: Counterfactual) -> Counterfactual:
    """The same, but never with donors of other processes: these draw no pictures."""
    fill: Any = copy.copy(make.fill)
    if getattr(fill, "donors", None) == "all":
        fill.donors = "device"
    return Counterfactual(make.mask, fill)
