"""Probing: a linear head fitted to the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.heads import fit_linear_head
from cfmask.images import to_unit

# Images of a probe at most: a regression on more takes hours, and is hardly better.
PROBED = 50_000


@torch.no_grad()
def probe(
    classifier: Classifier,
    copies: Sequence[Classifier],
    data: TrainingData,
    device: str | torch.device,
) -> None:
    """Fit a linear head to the frozen encoder's features of the training images.

    Of more than 50,000 images, so many are drawn. Each process embeds its share of them.

    Args:
        classifier: its head is changed in place; it ends on the CPU, in eval mode.
        copies: of the classifier, which get the same head.
        data: the training images.
        device: where the features are computed and the head is fitted.

    Raises:
        InputError: a head that is not linear, or images of one class alone.
    """
    head = classifier.head
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"Expected a linear head to probe, but that of {classifier.name} is a "
            f"{type(head).__name__}; leave out --probe."
        )
    data.prepare(classifier.preprocess)
    classifier.eval().to(device)
    shares = processes.gathered(lambda: _embedded(classifier, data, device))

    def fit() -> dict[str, Tensor]:
        features, labels = (torch.cat(parts) for parts in zip(*shares))
        fit_linear_head(head, features.to(device), labels)
        return {name: value.cpu() for name, value in head.state_dict().items()}

    fitted = processes.from_first(fit)
    classifier.to("cpu")
    for one in (classifier, *copies):
        one.head.load_state_dict(fitted)
        one.head_from = "probe"


def _embedded(
    classifier: Classifier, data: TrainingData, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels int64 (N,) of this process's images, in main memory."""
    features, labels = [torch.zeros(0, classifier.spec.width, device=device)], []
    for images, classes in data.drawn(PROBED):
        images = to_unit(images.to(device, non_blocking=True))
        features.append(classifier.features(images))
        labels.append(classes)
    return torch.cat(features).cpu(), torch.cat([torch.zeros(0, dtype=torch.int64), *labels])
