"""Batch statistics: a model whose batch norms read those of the test images as well.

Source: alpha-BN of Core (arXiv 2110.04065); there is no released code of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cfmask import processes
from cfmask.classifier import Classifier, full_precision
from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers
from cfmask.inference.any_model import AnyModel
from cfmask.inference.wise import Blend


@dataclass(frozen=True)
class Shuffle:
    """Batches of a set in a random order, so that each mixes the classes.

    Attributes:
        most: most images of a batch; the batches of a set differ by one image at most.
        seed: of the order.
    """

    most: int
    seed: int

    def order(self, length: int) -> Tensor:
        """Numbers of the images in the order that they are read, int64 (length,)."""
        return torch.randperm(length, generator=torch.Generator().manual_seed(self.seed))

    def batches(self, length: int) -> list[list[int]]:
        """This process's batches, whole: they are the same on any number of processes."""
        count = -(-length // self.most)
        batches = self.order(length).tensor_split(count)
        return [batches[k].tolist() for k in processes.own_part(count)]

    def restored(self, answers: Answers) -> Answers:
        """Answers in the order of the set, of those of all processes one after the other."""
        back = self.order(len(answers)).argsort()
        return Answers.of_tensors({name: c[back] for name, c in answers.tensors().items()})


def in_order(length: int, size: int) -> list[list[int]]:
    """Numbers of this process's images in the order of the set, batch by batch."""
    own = processes.own_part(length)
    return [list(own[k : k + size]) for k in range(0, len(own), size)]


@dataclass(frozen=True)
class Adapted:
    """A model by mixed statistics: alpha of its own and 1 - alpha of the batch.

    It shares the model's weights. Scale and shift of each `BatchNorm2d` stay, and nothing is kept
    from one batch to the next. The variance of a batch is the biased one, as in training.

    Attributes:
        model: whose batch norms they are.
        alpha: weight of the stored statistics, in [0, 1].
        shuffle: the batches.
    """

    model: Classifier | Blend | AnyModel
    alpha: float
    shuffle: Shuffle

    def facts(self) -> dict[str, Any]:
        """For the protocol and for keys."""
        read = f"batches of at most {self.shuffle.most} images of one set"
        order = f"in an order drawn with seed {self.shuffle.seed}"
        return {"batch_statistics": f"{self.alpha:g} stored, {1 - self.alpha:g} of {read}, {order}"}


@contextlib.contextmanager
def mixed(network: nn.Module, alpha: float) -> Iterator[None]:
    """Context in which batch norms read mixed statistics; then they have their own back.

    Args:
        network: in eval mode.
        alpha: weight of the stored statistics, in [0, 1].
    """
    own = {norm: (norm.running_mean, norm.running_var) for norm in _norms(network)}

    def mix(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        images = full_precision(inputs[0])
        var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
        for name, stored, seen in zip(("running_mean", "running_var"), own[norm], (mean, var)):
            assert stored is not None
            setattr(norm, name, alpha * stored + (1 - alpha) * seen.to(stored))

    hooks = [norm.register_forward_pre_hook(mix) for norm in own]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (mean, var) in own.items():
            norm.running_mean, norm.running_var = mean, var


def check_alpha(alpha: float | None) -> None:
    """Raise an InputError for a weight outside [0, 1]."""
    if alpha is not None and not 0 <= alpha <= 1:
        raise InputError(
            f"Expected batch_statistics in [0, 1], the weight of the stored ones, but got {alpha}."
        )


def check_norms(models: Mapping[str, object]) -> None:
    """Raise an InputError for the first model, by its name, that has no batch norm."""
    for name, model in models.items():
        network = model.line.tuned if isinstance(model, Blend) else model
        if not isinstance(network, nn.Module) or not _norms(network):
            raise InputError(
                f"Expected models with BatchNorm2d for batch_statistics, but {name} has none; "
                "evaluate it without."
            )


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Those that have statistics of their own."""
    norms = (part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    return [norm for norm in norms if norm.running_mean is not None]
