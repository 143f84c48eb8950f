"""Projection: how far each tensor may leave the starting point, fitted after training (TPGM)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from cfmask.checkpoint import check_alike
from cfmask.classifier import Classifier
from cfmask.errors import InputError

Batch = tuple[Tensor, Tensor]
LEAST = 1e-8


def tpgm(
    start: Classifier,
    tuned: Classifier,
    batches: Iterable[Batch],
    steps: int = 200,
    lr: float = 1e-2,
) -> tuple[Classifier, dict[str, float]]:
    """Trainable projected gradient method: WiSE-FT with a fitted weight for each tensor.

    Of every parameter w that training has moved, w_0 + min(1, r / |w - w_0|) (w - w_0) is taken,
    with the Euclidean norm over the tensor. The radii r begin at half of |w - w_0|; Adam fits them
    to the cross-entropy of held-out images of the training distribution, and after each step they
    are clipped to [1e-8, |w - w_0|]. Buffers, such as the statistics of batch norm, stay the tuned
    ones. The model runs in eval mode.

    Args:
        start: the starting point.
        tuned: tuned from it, on the same device.
        batches: images float (B, 3, H, W) in [0, 1] and labels int64 (B,), on that device; gone
            through again as often as the steps need.
        steps: of Adam.
        lr: of Adam.

    Returns:
        The model, and by the name of each moved parameter its weight in [0, 1].

    Raises:
        InputError: two architectures, or no batch.

    Source: Tian et al. 2023 (arXiv 2303.10720); initial radius, norm, steps and rate are those of
    the released ImageNet code (PotatoTian/TPGM).
    """
    check_alike(start, tuned)
    merged = copy.deepcopy(tuned).eval()
    old = {name: value.detach() for name, value in start.named_parameters()}
    deltas = {name: v.detach() - old[name] for name, v in merged.named_parameters()}
    moved = {name: delta for name, delta in deltas.items() if delta.any()}
    if not moved:
        return merged, {}
    lengths = torch.stack([delta.norm() for delta in moved.values()])
    radii = (lengths / 2).requires_grad_()
    optimiser = torch.optim.Adam([radii], lr)

    def projected() -> dict[str, Tensor]:
        # Clipped radii need no minimum, whose slope at the tie would hold them there.
        shares = radii / lengths
        return {n: old[n] + share * delta for (n, delta), share in zip(moved.items(), shares)}

    for images, labels in islice(_again(batches), steps):
        loss = F.cross_entropy(functional_call(merged, projected(), (images,)), labels)
        (radii.grad,) = torch.autograd.grad(loss, radii)
        optimiser.step()
        with torch.no_grad():
            radii.copy_(torch.minimum(radii.clamp(min=LEAST), lengths))
    with torch.no_grad():
        merged.load_state_dict({**merged.state_dict(), **projected()})
        return merged, dict(zip(moved, (radii / lengths).tolist()))


def _again(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, from the first one again after the last."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise InputError("Expected batches to fit the projection to, but there are none.")
