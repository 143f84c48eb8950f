"""Method: what every way of fine-tuning shares, from the optimiser to the checkpoint."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cfmask.classifier import Classifier
from cfmask.data.datamodule import TrainingData, to_unit
from cfmask.errors import InputError
from cfmask.heads import fit_linear_head


class Method(pl.LightningModule, ABC):
    """A way of fine-tuning. A subclass gives `losses`, and no more than it needs beside.

    The defaults are the recipe of arXiv 2303.03052: AdamW, one-cycle cosine per step. Running
    statistics of batch norm stay those of pretraining: counterfactual images would spoil them, and
    weights could not be interpolated.

    Args:
        classifier: the model to tune, changed in place.
        lr: peak learning rate.
        weight_decay: AdamW's, on all parameters.
        betas: AdamW's.
        warmup: share of the steps in which the learning rate rises, in [0, 1].
        task_weight: weight of the cross-entropy on clean images.
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 3e-5,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.02,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise InputError(f"Expected a learning rate above 0, but got {lr}.")
        if not 0 <= warmup <= 1:
            raise InputError(f"Expected warmup in [0, 1], but got {warmup}.")
        self.classifier = classifier
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup = warmup
        self.task_weight = task_weight
        classes = max(2, len(classifier.class_names))
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        # The teacher is not in the checkpoint.
        self.strict_loading = False

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass.

        Args:
            images: float (B, 3, H, W) in [0, 1].
            labels: int64 (B,).

        Returns:
            Logits (B, K) of the clean images, and further losses by name, each weighted already.
        """

    def on_fit_start(self) -> None:
        """Pretrained classifiers come in eval mode; Lightning would leave them in it."""
        self.train()

    def check(self, data: TrainingData) -> None:
        """Raise an InputError for data that this method cannot train on."""
        names, known = data.class_names, self.classifier.class_names
        if len(names) != len(known):
            raise InputError(
                f"Expected data of {len(known)} classes, as the head has, but got {len(names)}."
            )

    @torch.no_grad()
    def probe(self, data: TrainingData) -> None:
        """Fit the linear head to the frozen encoder's features of the training images.

        Raises:
            InputError: a head that is not linear.
        """
        head = self.classifier.head
        if not isinstance(head, nn.Linear):
            raise InputError(
                f"Expected a linear head to probe, but {self.classifier.name} has a zero-shot one; "
                "leave out --probe."
            )
        data.prepare(self.classifier.preprocess)
        self.classifier.eval()
        batches = [
            (self.classifier.features(to_unit(images)), labels)
            for images, labels in data.train_dataloader()
        ]
        fit_linear_head(
            head, torch.cat([f for f, _ in batches]), torch.cat([k for _, k in batches])
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Sum, check and log the losses of a batch."""
        images, labels = batch
        logits, losses = self.losses(images, labels)
        losses = {"task": self.task_weight * F.cross_entropy(logits, labels), **losses}
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            parts = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
            raise InputError(
                f"The loss is not finite at step {self.global_step} ({parts}). The last checkpoint "
                "is kept; try a lower learning rate or distillation weight."
            )
        self.log_dict({f"loss/{name}": value for name, value in losses.items()})
        self.log("loss/total", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Accuracy on the in-distribution images held out of training."""
        images, labels = batch
        self.val_accuracy(self.classifier(images), labels)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """AdamW and a one-cycle schedule that moves with every optimiser step."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError("Expected a number of epochs or steps, but both are unlimited.")
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, int(steps), pct_start=self.warmup, cycle_momentum=False
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train(self, mode: bool = True) -> Method:
        """Set the mode; batch norm stays in eval mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights of the student alone."""
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what rebuilds the classifier, so that the checkpoint loads without its method."""
        checkpoint["classifier"] = self.classifier.spec


def frozen_copy(classifier: Classifier) -> Classifier:
    """A teacher: copy in eval mode whose parameters get no gradient."""
    return copy.deepcopy(classifier).eval().requires_grad_(False)
