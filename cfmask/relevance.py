"""Relevance: how much each patch speaks for the true class, from the model as it is now.

Letters: B images, K classes, (h, w) patch grid, P = h · w patches, L tokens (prefix tokens first).
Relevance is float (B, h, w) in [0, 1]; the largest patch of an image is 1 (0 where nothing is
relevant at all).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cfmask.attention import AttentionMaps
from cfmask.classifier import Classifier, full_precision
from cfmask.errors import InputError


class Relevance(ABC):
    """Explains the logit of the true class by patches.

    A subclass gives `explain`, which runs the one forward pass that the task loss uses too. It
    leaves the model as it was: no gradient is written, no hook stays, no mode changes.
    """

    @abstractmethod
    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Classify the images and explain the logit of their labels.

        Args:
            classifier: the model to explain.
            images: float (B, 3, H, W) in [0, 1].
            labels: int64 (B,) in [0, K).

        Returns:
            logits (B, K) that still carry their graph, and relevance float (B, h, w) in [0, 1]
            without graph.

        Raises:
            InputError: the classifier has nothing that this relevance can read.
        """


class AttentionRelevance(Relevance):
    """Gradient-weighted attention, multiplied through all blocks (for transformers).

    With a_l the attention of block l and g_l its gradient, A_l = mean over heads of max(g_l · a_l,
    0) and R_l = R_{l-1} + A_l R_{l-1}. Only the row of R that the pooled feature reads is computed:
    it runs from the last block to the first as v <- v + v A_l.

    Source: Chefer et al. 2021 (arXiv 2103.15679), as used by arXiv 2303.03052.
    """

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`."""
        tokens = classifier.tokens
        if tokens is None:
            raise InputError(
                f"Expected an encoder with attention maps for AttentionRelevance, but got "
                f"{classifier.name}, which has none; use GradCAM."
            )
        with torch.enable_grad(), AttentionMaps() as attention:
            logits = classifier(images)
        gradients = torch.autograd.grad(_score(logits, labels), attention.maps, retain_graph=True)
        with torch.no_grad():
            row = tokens.readout(images.device).expand(len(images), 1, -1).to(logits.dtype)
            for weights, gradient in zip(reversed(attention.maps), reversed(gradients)):
                step = full_precision((gradient * weights).clamp(min=0).mean(1))
                # A last block that computes the class token alone gives just its row.
                row = row + (step if step.shape[1] == 1 else row @ step)
            return logits, normalise(row[:, 0, tokens.prefix :].unflatten(1, tokens.grid))


class GradCAM(Relevance):
    """Gradient-weighted class activation map.

    Channel weights are the mean gradient over positions; the map is relu of the weighted sum of the
    activation's channels. Reads the last stage of a CNN, or the input of a transformer's last
    attention.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391).

    Args:
        layer: name of the module inside `classifier.encoder` whose output is read, for a finer or
            coarser grid; the default is the encoder's last stage.
    """

    def __init__(self, layer: str | None = None) -> None:
        self.layer = layer

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`."""
        with torch.enable_grad(), self._tap(classifier) as taps:
            logits = classifier(images)
        (gradient,) = torch.autograd.grad(_score(logits, labels), taps, retain_graph=True)
        with torch.no_grad():
            activation, gradient = (
                _as_map(full_precision(x), classifier) for x in (taps[0], gradient)
            )
            weights = gradient.mean((2, 3), keepdim=True)
            return logits, normalise((weights * activation).sum(1).clamp(min=0))

    @contextlib.contextmanager
    def _tap(self, classifier: Classifier) -> Iterator[list[Tensor]]:
        """List that holds the layer's output once the classifier has run."""
        taps: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # A frozen encoder makes no graph: the tap then starts one.
            output = output if output.requires_grad else output.detach().requires_grad_()
            taps.append(output)
            return output

        handle = classifier.layer(self.layer or classifier.feature_map).register_forward_hook(keep)
        try:
            yield taps
        finally:
            handle.remove()


def normalise(relevance: Tensor) -> Tensor:
    """Divide each map (B, h, w) of non-negative values by its own maximum."""
    return relevance / (relevance.amax((1, 2), keepdim=True) + 1e-8)


def _score(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the batch of the true class's logit."""
    with torch.enable_grad():
        return logits.gather(1, labels.unsqueeze(1)).sum()


def _as_map(activation: Tensor, classifier: Classifier) -> Tensor:
    """Activation as (B, C, h, w), whatever the layer's layout."""
    if activation.ndim == 4:
        return activation.movedim(-1, 1) if classifier.layout.channels_last else activation
    if activation.ndim == 3 and classifier.tokens is not None:
        patches: Tensor = activation[:, classifier.tokens.prefix :].transpose(1, 2)
        spread: Tensor = patches.unflatten(2, classifier.tokens.grid)
        return spread
    raise InputError(
        f"Expected a layer with spatial output (B, C, h, w) for GradCAM, but got one of shape "
        f"{tuple(activation.shape)}; name another with `layer`."
    )
