"""Method: what every way of fine-tuning shares, from the optimiser to the checkpoint."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cfmask.checkpoint import plain_spec
from cfmask.classifier import Classifier
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.internals import internal, is_attached, takes_found_inf
from cfmask.methods.encoders import Compiled, checkpoint_blocks, compile_encoder
from cfmask.methods.finite import FiniteWatch
from cfmask.methods.mixing import Mixing
from cfmask.methods.probing import probe
from cfmask.methods.rates import Rates, of_upper
from cfmask.methods.teacher import equal_weights
from cfmask.signatures import spell_out


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
        compile: run encoders through `torch.compile` where no map has to be read; `step`: all
            losses as a whole, where the step reads no gradient.
        grad_checkpointing: keep less of each block and compute it again for its gradient: less
            memory, more time; for large transformers.
        cycle_momentum: let the first beta go from 0.95 to 0.85 while the learning rate rises, and
            back while it falls, as the released code of the paper does; the first of `betas` is
            not used then.
        label_smoothing: share of the target that all classes get alike, in [0, 1).
        mixup: alpha of mixup of the task loss's images; 0 for none.
        cutmix: alpha of cutmix, likewise; where both are given, a batch has one of them.
        layer_decay: learning rate of a layer in units of that of the next one, in (0, 1].
        head_lr: peak learning rate of the head; None for `lr`.
        upper_blocks: train so many blocks of the encoder, the last ones, with what follows them;
            None for all.
        fixed_head: leave the head as it is.

    Attributes:
        skip_nonfinite: how many steps with a loss or gradient that is not finite may be left out
            before the run stops.
        skipped: how many have been.
    """

    def __init__(
        self,
        classifier: Classifier,
        lr: float = 3e-5,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.02,
        task_weight: float = 1.0,
        compile: Compiled = False,
        grad_checkpointing: bool = False,
        cycle_momentum: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        layer_decay: float = 1.0,
        head_lr: float | None = None,
        upper_blocks: int | None = None,
        fixed_head: bool = False,
    ) -> None:
        super().__init__()
        # jsonargparse hands on the parts of a classifier that was given no class.
        if not isinstance(classifier, Classifier):
            raise InputError(f"Expected a classifier by its class, but got {classifier!r:.80}.")
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise InputError(f"Expected a weight decay of at least 0, but got {weight_decay}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"Expected betas in [0, 1), but got {betas[0]} and {betas[1]}.")
        if not 0 <= warmup <= 1:
            raise InputError(f"Expected warmup in [0, 1], but got {warmup}.")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"Expected label_smoothing in [0, 1), but got {label_smoothing}.")
        self.upper_blocks = upper_blocks
        parameters = dict(classifier.encoder.named_parameters())
        for name in parameters.keys() - of_upper(parameters, classifier.encoder, upper_blocks):
            parameters[name].requires_grad_(False)
        if fixed_head:
            classifier.head.requires_grad_(False)
        self.classifier = classifier
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup = warmup
        self.task_weight = task_weight
        self.cycle_momentum = cycle_momentum
        self.compiled = compile
        self.grad_checkpointing = grad_checkpointing
        if grad_checkpointing:
            checkpoint_blocks(classifier)
        self.label_smoothing = label_smoothing
        self.mixing = Mixing(mixup, cutmix, len(classifier.class_names))
        self.rates = Rates(lr, layer_decay, head_lr)
        classes = max(2, len(classifier.class_names))
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self._watch = FiniteWatch()
        # The teacher is not in the checkpoint.
        self.strict_loading = False

    skip_nonfinite = 0
    skipped = 0

    def __init_subclass__(cls, **options: Any) -> None:
        """A constructor that ends in `**recipe` shows its parent's arguments by name."""
        super().__init_subclass__(**options)
        spell_out(cls)

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """All losses of a batch by name, each weighted; "task" is the cross-entropy.

        A part that `backward_now` has dealt with already comes without its graph.

        Args:
            images: float (B, 3, H, W) in [0, 1].
            labels: int64 (B,).
        """

    def plain(self) -> Classifier:
        """The classifier as files hold it, without anything that only the training needs."""
        return self.classifier

    def tuned(self) -> dict[str, Tensor]:
        """The weights that `plain` is made of, by name; see `made_of`."""
        weights: dict[str, Tensor] = self.classifier.state_dict()
        return weights

    def made_of(self, weights: Mapping[str, Tensor]) -> Classifier:
        """The classifier that other weights of the names of `tuned` make; some may be left out."""
        made = copy.deepcopy(self.plain())
        made.load_state_dict({**made.state_dict(), **weights})
        return made

    def passes(self) -> float:
        """Forward passes of the encoder that a step makes of an image, for the printed cost.

        A backward pass counts as two, a pass of the teacher as one. A method that does otherwise
        than plain fine-tuning says so here.
        """
        return 4.0 if self.grad_checkpointing else 3.0

    def graphs(self) -> float:
        """Forward passes whose activations are kept at a time, for the printed memory."""
        return 1.0

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy of logits (B, K) and labels int64 (B,), or float (B, K)."""
        smoothing = self.label_smoothing
        return self.task_weight * F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def task_of(self, images: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy of images (B, 3, H, W) that are mixed if that is wanted."""
        mixed, targets = self.mixing(images, labels)
        return self.task_loss(self.classifier(mixed), targets)

    def backward_now(self, loss: Tensor) -> Tensor:
        """Add the gradient of one part of the loss at once, so that its graph is freed.

        Several processes share gradients in the last part's backward pass, which therefore has to
        reach all parameters: the head's with a gradient of zero.

        Returns:
            The loss without its graph. Outside of a trainer the loss as it came: a loop of one's
            own may clear gradients between `losses` and its backward pass.
        """
        if not is_attached(self):
            return loss
        self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None)
        if isinstance(self.trainer.strategy, SingleDeviceStrategy):
            return loss.detach()
        return loss.detach() + sum(0 * p.sum() for p in self.classifier.head.parameters())

    def setup(self, stage: str) -> None:
        """See `LightningModule.setup`. The weights are not on their device yet."""
        for module in self.modules():
            if isinstance(module, Classifier):
                module.suit(self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Lay out what an optimiser has kept, of a run on another device, as the weights are."""
        for optimizer in self.trainer.optimizers:
            for weight, kept in optimizer.state.items():
                for name, value in kept.items():
                    same = isinstance(value, Tensor) and value.shape == weight.shape
                    if same and value.stride() != weight.stride():
                        kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_fit_start(self) -> None:
        """Pretrained classifiers come in eval mode; Lightning would leave them in it."""
        self.train()
        if self.compiled == "step":
            self.losses = torch.compile(self.losses)  # type: ignore[method-assign]
        elif self.compiled:
            compile_encoder(self.classifier)

    def check(self, data: TrainingData) -> None:
        """Raise an InputError for data that this method cannot train on."""
        names, known = data.class_names, self.classifier.class_names
        if len(names) != len(known):
            raise InputError(
                f"Expected data of {len(known)} classes, as the head has, but got {len(names)}."
            )

    def wants_probe(self) -> bool:
        """Whether nothing has fitted the head yet, and `probe` can."""
        return self.classifier.head_from == "chance" and isinstance(self.classifier.head, nn.Linear)

    def probe(self, data: TrainingData, device: str | torch.device = "cpu") -> None:
        """Fit the linear head to the frozen encoder's features of the training images.

        A teacher that is a copy of the classifier gets the same head. See `probing.probe`.
        """
        probe(self.classifier, self.copies(), data, device)

    def start_from(self, start: Classifier) -> None:
        """Take the weights of the starting point of a run that goes on, as do teachers."""
        for classifier in (self.classifier, *self.copies()):
            classifier.load_state_dict(start.state_dict())
            classifier.head_from = start.head_from

    def copies(self) -> list[Classifier]:
        """The other classifiers of this method that still have the weights of its own: teachers."""
        own = self.classifier.state_dict()
        others = [m for m in self.modules() if isinstance(m, Classifier) and self._other(m)]
        return [other for other in others if equal_weights(other.state_dict(), own)]

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Sum, check and log the losses of a batch."""
        images, labels = batch
        losses = self.losses(images, labels)
        loss = torch.stack(list(losses.values())).sum()
        self._watch.see(losses)
        self.log_dict({f"loss/{name}": value for name, value in losses.items()})
        self.log("loss/total", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Accuracy on the in-distribution images held out of training."""
        images, labels = batch
        self.val_accuracy(self.classifier(images), labels)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(labels))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, with the settings of each group."""
        return self.rates.groups(self, self.classifier)

    def configure_optimizers(self) -> Any:
        """AdamW and a one-cycle schedule that moves with every optimiser step."""
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=self.device.type == "cuda" or None,
        )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError("Expected a number of epochs or steps, but both are unlimited.")
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            int(steps),
            pct_start=self.warmup,
            cycle_momentum=self.cycle_momentum,
            base_momentum=0.85,
            max_momentum=0.95,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out a step whose loss or gradient is not finite, or stop.

        A fused optimiser leaves it out by itself. Which were left out is read from the device when
        something is logged or saved, with any other optimiser at once.

        Raises:
            InputError: more such steps than `skip_nonfinite`.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        given = [p for p in self.parameters() if p.grad is not None]
        norm = torch.zeros((), device=self.device)
        # Half precision has a scale that is tried out; its steps are left out by the scaler.
        if not scaled:
            norm = torch.nn.utils.get_total_norm([p.grad for p in given if p.grad is not None])
        wrong = self._watch.judge(self.global_step, norm)
        alone = takes_found_inf(optimizer)
        if alone and not scaled:
            optimizer.found_inf = wrong.float()  # type: ignore[attr-defined]
        every = self.trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        if (alone and (self.global_step + 1) % every) or not self._count_skipped():
            return
        self.log("skipped_steps", float(self.skipped))
        if not (alone or scaled):
            # The optimiser passes over what has no gradient, weight decay included.
            for parameter in given:
                parameter.grad = None

    def _count_skipped(self) -> int:
        """Steps that were left out since the last look.

        Raises:
            InputError: more in all than `skip_nonfinite`.
        """
        found = self._watch.read()
        if found is None:
            return 0
        self.skipped += found.steps
        if self.skipped > self.skip_nonfinite:
            raise InputError(
                f"{found}, and {self.skip_nonfinite} such steps were allowed. The last checkpoint "
                "is kept; try a lower learning rate or distillation weight, or a higher "
                "--skip_nonfinite."
            )
        return found.steps

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clear the gradients: before a step they may hold its first part already."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Nothing: `optimizer_step` has cleared them."""

    def on_train_end(self) -> None:
        """Read what was left out since the last look."""
        self._count_skipped()

    def on_train_epoch_end(self) -> None:
        """Log how many unreadable images this device has skipped, of data that may skip any."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TrainingData) and data.unreadable == "skip":
            self.log("data/skipped", float(data.skips()))

    def train(self, mode: bool = True) -> Method:
        """Set the mode; batch norm stays in eval mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, internal("batch_norm")):
                module.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights of what is trained; other classifiers, as teachers, are left out."""
        state = super().state_dict(*args, **kwargs)
        others = tuple(f"{name}." for name, module in self.named_children() if self._other(module))
        return {k: v for k, v in state.items() if not k.startswith(others)}

    def _other(self, module: nn.Module) -> bool:
        return isinstance(module, Classifier) and module is not self.classifier

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what rebuilds the classifier, so that the checkpoint loads without its method.

        Raises:
            InputError: more steps were not finite than are allowed; nothing is written then.
        """
        self._count_skipped()
        checkpoint["classifier"] = {**plain_spec(self.classifier), "head_from": "training"}
        checkpoint["skipped_steps"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the steps that were left out."""
        self.skipped = int(checkpoint.get("skipped_steps", 0))
