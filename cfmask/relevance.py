"""Relevance: the contribution of each patch to the true class, from the model in its current state.

Letters: B images, K classes, (h, w) patch grid, P = h · w patches, L tokens (prefix tokens first),
C channels. Relevance is float (B, h, w) in [0, 1]; the largest patch of an image is 1 (0 where
nothing is relevant at all).
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask.attention import AttentionOutputs, eager
from cfmask.classifier import Classifier, full_precision
from cfmask.errors import InputError


class Relevance(ABC):
    """Explains the true class by patches.

    A subclass gives `explain`, which runs the forward pass that the task loss uses too. It leaves
    the model as it was: no gradient is written, no hook stays, no mode changes.

    Attributes:
        passes: cost of an image in forward passes, beyond the one shared with the task loss, for
            the cost that a run prints. NaN if unknown.
    """

    passes: float = 0.0

    def check(self, classifier: Classifier) -> None:  # noqa: B027
        """Raise an InputError for a classifier that it cannot explain, before any training."""

    @abstractmethod
    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Classify the images and explain their labels.

        Args:
            classifier: the model to explain.
            images: float (B, 3, H, W) in [0, 1].
            labels: int64 (B,) in [0, K).

        Returns:
            logits (B, K) that still carry their graph, and relevance float (B, h, w) in [0, 1]
            without graph.

        Raises:
            InputError: it cannot explain this classifier.
        """


class Trace:
    """Tensors of a forward pass, whose gradients give the relevance.

    A gradient is reduced as soon as it arrives, so that those of all blocks are never in memory
    together.

    Args:
        tensors: parts of the graph, in order of computation.
        reduce: index and gradient of a tensor -> its contribution, without graph.
        finish: contributions, in order of computation -> relevance, not yet normalised.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        reduce: Callable[[int, Tensor], Tensor],
        finish: Callable[[list[Tensor]], Tensor],
    ) -> None:
        self.tensors = list(tensors)
        self.reduce = reduce
        self.finish = finish
        self.contributions: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def listen(self, logits: Tensor, labels: Tensor) -> Iterator[None]:
        """Context for the backward pass of any objective of the logits (B, K).

        Gradients are divided by that of the objective with respect to the true logit, image by
        image. For the sum of the true logits that is 1. For the cross-entropy the objective becomes
        the true logit minus the mean of the other logits, weighted by their probability.
        """
        unit = logits.new_ones(len(labels))

        def take_unit(gradient: Tensor) -> None:
            true = full_precision(gradient.gather(1, labels.unsqueeze(1)).squeeze(1))
            # Where the true class has probability 1 in floats, the cross-entropy has no gradient.
            unit.copy_(torch.where(true == 0, true, 1 / true))

        def receive(index: int, gradient: Tensor) -> None:
            with torch.no_grad():
                scale = unit.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1))
                self.contributions[index] = self.reduce(index, gradient * scale)

        with contextlib.ExitStack() as hooks:
            hooks.enter_context(logits.register_hook(take_unit))
            for index, tensor in enumerate(self.tensors):
                hooks.enter_context(tensor.register_hook(partial(receive, index)))
            yield

    def relevance(self) -> Tensor:
        """Relevance float (B, h, w) in [0, 1], once the gradient has passed."""
        with torch.no_grad():
            return normalise(self.finish([self.contributions[k] for k in range(len(self.tensors))]))


class GradientRelevance(Relevance):
    """Relevance by the gradient of the true logit. A subclass gives `watch`."""

    # A backward pass to the first block, without gradients of weights.
    passes = 1.0

    @abstractmethod
    def watch(self, classifier: Classifier, images: Tensor) -> tuple[Tensor, Trace]:
        """Run the forward pass: logits (B, K) with their graph, and the tensors to trace."""

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`."""
        with torch.enable_grad():
            logits, trace = self.watch(classifier, images)
            score = logits.gather(1, labels.unsqueeze(1)).sum()
            with trace.listen(logits, labels):
                torch.autograd.grad(score, trace.tensors[:1], retain_graph=True)
        return logits, trace.relevance()


class AttentionRelevance(GradientRelevance):
    """Gradient-weighted attention, multiplied through all blocks (for transformers).

    With a_l the attention of block l and g_l its gradient, A_l = mean over heads of max(g_l · a_l,
    0) and R_l = R_{l-1} + A_l R_{l-1}. Only the row of R that the pooled feature reads is computed,
    from the last block to the first as v <- v + v A_l. A block's map is recomputed from its queries
    and keys when its gradient arrives, so that only one map is in memory at a time.

    Source: Chefer et al. 2021 (arXiv 2103.15679), as used by arXiv 2303.03052.

    Examples:
        >>> from cfmask import digits
        >>> clip = cfmask.OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, ["a {}"])
        >>> relevance = cfmask.AttentionRelevance()
        >>> logits, maps = relevance.explain(clip, torch.rand(2, 3, 48, 48), torch.tensor([3, 7]))
        >>> tuple(maps.shape) == (2, *clip.grid)
        True
    """

    def check(self, classifier: Classifier) -> None:
        """See `Relevance.check`."""
        _check_attention(classifier, type(self).__name__)

    def watch(self, classifier: Classifier, images: Tensor) -> tuple[Tensor, Trace]:
        """See `GradientRelevance.watch`."""
        self.check(classifier)
        with torch.enable_grad(), AttentionOutputs() as attention:
            logits = classifier(images)
        seen = attention.seen

        def reduce(index: int, gradient: Tensor) -> Tensor:
            products = seen[index].gradient(gradient) * seen[index].map()
            return full_precision(products.clamp(min=0).mean(1))

        outputs = [attended.output for attended in seen]
        return logits, Trace(outputs, reduce, lambda maps: _flow(classifier, maps))


class AttentionRollout(Relevance):
    """Attention multiplied through all blocks, half of each being the residual (for transformers).

    It needs no gradient and does not depend on the class.
    With a_l the attention of block l, R_l = (mean over heads of a_l + I) / 2 · R_{l-1}.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928).
    """

    def check(self, classifier: Classifier) -> None:
        """See `Relevance.check`."""
        _check_attention(classifier, type(self).__name__)

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`. The labels are not read."""
        self.check(classifier)
        with AttentionOutputs() as attention:
            logits = classifier(images)
        with torch.no_grad():
            # The factor 1/2 scales all patches alike; the map is normalised.
            means = [full_precision(attended.map().mean(1)) for attended in attention.seen]
            return logits, normalise(_flow(classifier, means))


class _ActivationMap(GradientRelevance):
    """Base of the maps by the activation and gradient of one layer.

    Args:
        layer: name of the module inside `classifier.encoder` whose output is read, for a finer or
            coarser grid; the default is the encoder's last stage.
    """

    # The gradient ends at the last stage.
    passes = 0.0

    def __init__(self, layer: str | None = None) -> None:
        self.layer = layer

    def check(self, classifier: Classifier) -> None:
        """See `Relevance.check`."""
        name = self.layer or classifier.feature_map
        if not name:
            raise InputError(
                f"Expected a layer whose map divides the image for {type(self).__name__}, but "
                f"{classifier.name} has none; name one with `layer`, or mask by RandomMask."
            )
        classifier.layer(name)

    @abstractmethod
    def weigh(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Map (B, h, w) of a gradient and an activation (B, C, h, w)."""

    def watch(self, classifier: Classifier, images: Tensor) -> tuple[Tensor, Trace]:
        """See `GradientRelevance.watch`."""
        taps: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # A frozen encoder makes no graph, so one starts here.
            taps.append(output if output.requires_grad else output.detach().requires_grad_())
            return taps[-1]

        layer = classifier.layer(self.layer or classifier.feature_map)
        with torch.enable_grad(), eager(), layer.register_forward_hook(keep):
            logits = classifier(images)
        if not taps:
            raise InputError(
                f"Expected a layer that {classifier.name} runs, but {self.layer} is not called; "
                "name another with `layer`."
            )
        as_map(taps[0], classifier)

        def reduce(index: int, gradient: Tensor) -> Tensor:
            pair = gradient, taps[index].detach()
            maps = (as_map(full_precision(x), classifier) for x in pair)
            return self.weigh(*maps).clamp(min=0)

        return logits, Trace(taps, reduce, lambda maps: maps[0])


class GradCAM(_ActivationMap):
    """Gradient-weighted class activation map.

    Channel weights are the mean gradient over positions; the map is relu of the weighted sum of the
    activation's channels. Reads the last stage of a CNN, or the input of a transformer's last
    attention.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391).

    Args:
        layer: name of the module inside `classifier.encoder` whose output is read, for a finer or
            coarser grid; the default is the encoder's last stage.

    Examples:
        >>> net = cfmask.TimmClassifier("test_resnet", False, ["ant", "bee"], image_size=96)
        >>> images, labels = torch.rand(1, 3, 96, 96), torch.tensor([1])
        >>> logits, maps = cfmask.GradCAM().explain(net, images, labels)
        >>> tuple(maps.shape) == (1, *net.grid)
        True
    """

    def weigh(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Sum over channels of the mean gradient times the activation."""
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


class HiResCAM(_ActivationMap):
    """Gradient times activation, position by position: Grad-CAM without the mean over positions.

    Source: Draelos and Carin 2020 (arXiv 2011.08891).

    Args:
        layer: see `GradCAM`.
    """

    def weigh(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Sum over channels of gradient times activation."""
        return (gradient * activation).sum(1)


class LayerCAM(_ActivationMap):
    """Positive gradient times activation, position by position; sharp in early layers too.

    Source: Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization" (IEEE TIP 30), equation 6.

    Args:
        layer: see `GradCAM`.
    """

    def weigh(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Sum over channels of the positive part of the gradient times the activation."""
        return (gradient.clamp(min=0) * activation).sum(1)


def default_relevance(classifier: Classifier) -> Relevance:
    """Attention relevance where attention maps lead to the feature, else Grad-CAM."""
    tokens = classifier.tokens
    return GradCAM() if tokens is None or tokens.pooled == "other" else AttentionRelevance()


def normalise(relevance: Tensor) -> Tensor:
    """Divide each map (B, h, w) of non-negative values by its own maximum."""
    return relevance / (relevance.amax((1, 2), keepdim=True) + 1e-8)


def _flow(classifier: Classifier, maps: Sequence[Tensor]) -> Tensor:
    """Row of the product of all (I + map) that the pooled feature reads, as (B, h, w)."""
    tokens = classifier.tokens
    assert tokens is not None
    row = tokens.readout(maps[0].device).expand(len(maps[0]), 1, -1).to(maps[0].dtype)
    for step in reversed(maps):
        step = F.pad(step, (row.shape[2] - step.shape[2], 0))
        # In a last block for the class token alone and in an attention pool the queries are not the
        # tokens: the feature reads the first.
        row = row + (row @ step if step.shape[1] == row.shape[2] else step[:, :1])
    patches: Tensor = row[:, 0, tokens.prefix :].unflatten(1, tokens.grid)
    return patches


def _check_attention(classifier: Classifier, name: str) -> None:
    if classifier.tokens is None:
        raise InputError(
            f"Expected an encoder with attention maps for {name}, but got {classifier.name}, which "
            "has none; use GradCAM."
        )
    classifier.tokens.check(name, "GradCAM")


def as_map(activation: Tensor, classifier: Classifier) -> Tensor:
    """Activation as (B, C, h, w), whatever the layer's layout."""
    if activation.ndim == 4:
        return activation.movedim(-1, 1) if classifier.layout.channels_last else activation
    tokens = classifier.tokens
    whole = tokens is not None and tokens.prefix + math.prod(tokens.grid) == activation.shape[1]
    if activation.ndim == 3 and tokens is not None and whole:
        patches: Tensor = activation[:, tokens.prefix :].transpose(1, 2)
        spread: Tensor = patches.unflatten(2, tokens.grid)
        return spread
    raise InputError(
        f"Expected a layer with spatial output (B, C, h, w) for a class activation map, but got "
        f"one of shape {tuple(activation.shape)}; name another with `layer`."
    )
