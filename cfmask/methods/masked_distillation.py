"""Fine-tuning with distillation on counterfactual images: the method this project is for."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.counterfactual import Counterfactual, check_donors
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.internals import is_attached
from cfmask.methods.base import Method
from cfmask.methods.distillation import Distillation, Distilling
from cfmask.methods.photometric import Photometric
from cfmask.relevance import GradientRelevance, Relevance, default_relevance


class MaskedDistillation(Distillation):
    """Cross-entropy on clean images, distance to the teacher on counterfactual ones.

    The forward pass that the task loss uses also makes the relevance, from the student as it is now
    and for the true class.

    Args:
        classifier: see `Method`. A frozen copy of it, made now, is the teacher.
        counterfactual: mask and fill; a list of them gives one counterfactual image each, and the
            distance is their mean: object and context together, for example.
        relevance: what says which patches carry the class; by default attention relevance where
            attention maps lead to the feature, as in ViTs, else Grad-CAM.
        copies: counterfactual images of each image and kind, with donors of their own.
        relevance_of: `logit`, the paper's true-class logit, or `loss`. The latter reads the
            gradient of the task loss itself, which saves a backward pass and departs from the
            paper; see docs/cost.md for what it costs in accuracy.
        two_backwards: free the clean images' graph before the counterfactual ones' is made: same
            gradients, less memory. Not for FSDP, and without effect outside of a trainer.
        label_weight: weight of a cross-entropy on the counterfactual images of masks that keep the
            label, as `ContextMask` does, mean over these; 0 for none. Beyond the paper.
        photometric: how far the colours of counterfactual images are changed before student and
            teacher see them, in [0, 1] as in `Photometric`; 0 for not at all. Beyond the paper.
        **recipe: see `Distillation` and `Method`. Relevance and counterfactuals of mixed images
            stay those of the clean ones; `compile` is true or false.

    Source: Xiao et al. 2023, "Masked Images Are Counterfactual Samples for Robust Fine-tuning"
    (arXiv 2303.03052).

    Examples:
        >>> net = cfmask.TimmClassifier("test_resnet", False, ["ant", "bee"], image_size=96)
        >>> make = cfmask.Counterfactual(cfmask.ObjectMask(), cfmask.SingleFill())
        >>> method = cfmask.MaskedDistillation(net, counterfactual=make, relevance=cfmask.GradCAM())
        >>> sorted(method.losses(torch.rand(2, 3, 96, 96), torch.tensor([0, 1])))
        ['distill', 'task']
    """

    def __init__(
        self,
        classifier: Classifier,
        counterfactual: Counterfactual | list[Counterfactual],
        relevance: Relevance | None = None,
        copies: int = 1,
        relevance_of: Literal["logit", "loss"] = "logit",
        two_backwards: bool = True,
        label_weight: float = 0.0,
        photometric: float = 0.0,
        **recipe: Unpack[Distilling],
    ) -> None:
        super().__init__(classifier, **recipe)
        if self.compiled == "step":
            raise InputError(
                "Expected --model.compile true or false for masked distillation, which reads "
                "gradients within its step, but got step."
            )
        several = counterfactual if isinstance(counterfactual, list) else [counterfactual]
        if copies < 1 or not several:
            raise InputError("Expected at least one counterfactual and one copy, but got none.")
        kept = any(make.mask.keeps_label for make in several)
        if not label_weight >= 0 or (label_weight and not kept):
            raise InputError(
                "Expected label_weight of at least 0, and above it a mask that keeps the label, "
                f"such as ContextMask, but got {label_weight} and "
                f"{', '.join(type(make.mask).__name__ for make in several)}."
            )
        self.counterfactuals = several * copies
        self.label_weight = label_weight
        self.photometric = Photometric(photometric)
        self.relevance = relevance or default_relevance(classifier)
        self.relevance_of = relevance_of
        self.two_backwards = two_backwards
        by_gradient = isinstance(self.relevance, GradientRelevance) and two_backwards
        if relevance_of == "loss" and self.mixing:
            raise InputError(
                "Expected relevance_of: logit with mixup or cutmix, whose task loss is not that of "
                "the clean images, but got loss."
            )
        if relevance_of == "loss" and not by_gradient:
            raise InputError(
                "Expected a relevance by gradient and two_backwards for relevance_of: loss, but "
                f"got {type(self.relevance).__name__} with two_backwards {two_backwards}."
            )

    @property
    def explained(self) -> bool:
        """Whether any mask needs relevance."""
        return any(make.mask.needs_relevance for make in self.counterfactuals)

    def check(self, data: TrainingData) -> None:
        """See `Method.check`. A refill needs a second image to take from.

        Relevance and fill have to suit the encoder: the teacher tries them on a blank image.
        """
        super().check(data)
        if self.explained:
            self.relevance.check(self.classifier)
        if any(make.fill.removes for make in self.counterfactuals):
            hidden = torch.arange(math.prod(self.classifier.grid)) == 0
            hidden = hidden.view(1, *self.classifier.grid)
            blank = torch.zeros(1, 3, *self.classifier.image_size)
            self.teach(blank, hidden)
            if self.other:
                with torch.no_grad():
                    self.classifier.features(blank, hidden)
        if any(make.fill.needs_donors for make in self.counterfactuals):
            check_donors(data.batch_size)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`."""
        super().on_fit_start()
        if self.two_backwards and isinstance(self.trainer.strategy, FSDPStrategy):
            raise InputError("Expected two_backwards: false under FSDP, but got true.")

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Method.losses`."""
        task, relevance = self.clean_pass(images, labels)
        distances, answers = [], []
        for k, make in enumerate(self.counterfactuals, 1):
            distance, answer = self.counterfactual_pass(make, images, labels, relevance)
            if k < len(self.counterfactuals):
                whole, answer = self.part(distance + answer), answer.detach()
                distance = whole - answer
            distances.append(distance)
            answers.append(answer)
        losses = {"task": task, "distill": torch.stack(distances).sum()}
        return {**losses, "label": torch.stack(answers).sum()} if self.label_weight else losses

    def passes(self) -> float:
        """See `Method.passes`. Student and teacher see each counterfactual, the student all."""
        by_logit = self.explained and self.relevance_of == "logit"
        step = Method.passes(self)
        explaining = self.relevance.passes + bool(self.mixing) if by_logit else 0
        return step + explaining + len(self.counterfactuals) * (step + self.taught())

    def graphs(self) -> float:
        """See `Method.graphs`."""
        return 1.0 if self.two_backwards else 1.0 + len(self.counterfactuals)

    def clean_pass(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Task loss and relevance float (B, h, w) in [0, 1] of clean images."""
        if not self.explained:
            return self.part(self.task_of(images, labels)), images.new_zeros(
                len(images), *self.classifier.grid
            )
        if self.relevance_of == "loss" and isinstance(self.relevance, GradientRelevance):
            logits, trace = self.relevance.watch(self.classifier, images)
            with trace.listen(logits, labels):
                task = self.part(self.task_loss(logits, labels))
                if not trace.contributions:
                    torch.autograd.grad(task, trace.tensors[:1], retain_graph=True)
            return task, trace.relevance()
        logits, relevance = self.relevance.explain(self.classifier, images, labels)
        if self.mixing:
            # The graph of the clean images is not needed any more.
            del logits
            return self.part(self.task_of(images, labels)), relevance
        return self.part(self.task_loss(logits, labels)), relevance

    def counterfactual_pass(
        self, make: Counterfactual, images: Tensor, labels: Tensor, relevance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What one counterfactual of each image adds to the loss.

        Returns:
            Weighted distance of student and teacher, and weighted cross-entropy, zero where the
            label is not kept.
        """
        masked, replaced = make(images, relevance)
        masked = self.photometric(masked)
        if is_attached(self):
            self.log("masked_share", replaced.float().mean())
        hidden, visible = None, None
        if make.fill.removes:
            own = replaced.shape[1:] == self.classifier.grid
            hidden, visible = replaced, make.mask.kept(replaced[0].numel()) if own else None
        features = self.classifier.features(masked, hidden, visible)
        distance = self.distill(features, masked, hidden, visible) / len(self.counterfactuals)
        if not (self.label_weight and make.mask.keeps_label):
            return distance, torch.zeros_like(distance)
        weight = self.label_weight / sum(m.mask.keeps_label for m in self.counterfactuals)
        logits = self.classifier.classify(features)
        answer = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return distance, weight * answer

    def part(self, loss: Tensor) -> Tensor:
        """A part of the loss that no later part needs the graph of."""
        return self.backward_now(loss) if self.two_backwards and loss.requires_grad else loss
