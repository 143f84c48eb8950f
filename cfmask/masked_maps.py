"""Masked maps: the arithmetic of feature maps of which some positions are hidden. Pure functions.

Letters: B images, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[..., Any]


@dataclass(frozen=True)
class MaskRules:
    """Variants of layer masking; the defaults are ours.

    The code released with arXiv 2211.14646 has one variant for each architecture: DenseNet joins by
    `majority` and means over `all`; SqueezeNet joins by `union`, means over `all` and has `kept`
    outside; timm's ResNet means over `all`; the others have the defaults.

    Attributes:
        padding: input of a convolution at hidden positions: the mean of their `neighbours`, or zero
            (`none`); `partial` divides the sum of a window by its visible share, where zeros beyond
            the border count as hidden.
        join: where concatenated maps are visible: where all are (`intersection`), more than half
            of them (`majority`) or one (`union`). Sums and products are visible where all are.
        mean: positions that the global average is over: `visible` ones, or `all`, hidden ones as
            zeros.
        outside: output of a convolution at hidden positions, until the next one or a pooling:
            `zero`, or what it computes (`kept`).
    """

    padding: Literal["neighbours", "none", "partial"] = "neighbours"
    join: Literal["intersection", "majority", "union"] = "intersection"
    mean: Literal["visible", "all"] = "visible"
    outside: Literal["zero", "kept"] = "zero"


class Mask(NamedTuple):
    """Flags of each position, both bool (B, 1, H, W); zeros added by `F.pad` have neither."""

    visible: Tensor
    hidden: Tensor
    rules: MaskRules

    def through(self, window: Operation) -> Mask:
        """Send both maps through a pooling or padding; one visible position is enough."""
        visible = window(self.visible.float()) > 0
        return Mask(visible, (window(self.hidden.float()) > 0) & ~visible, self.rules)

    def expanded(self, size: Sequence[int]) -> Mask:
        """The same flags, for all images and positions of a map."""
        return Mask(self.visible.expand(size), self.hidden.expand(size), self.rules)


def joined(masks: Sequence[Mask], way: str) -> Mask:
    """One mask of several maps that meet; see `MaskRules.join`."""
    seen, gone = (
        sum(flags.long() for flags in many)
        for many in ([m.visible for m in masks], [m.hidden for m in masks])
    )
    least = {"intersection": len(masks), "majority": len(masks) // 2 + 1, "union": 1}[way]
    visible = torch.as_tensor(seen) >= least
    return Mask(visible, (torch.as_tensor(gone) > 0) & ~visible, masks[0].rules)


def filled(value: Tensor, mask: Mask, times: int) -> Tensor:
    """Fill hidden positions, `times` deep, with the mean of their known 3x3 neighbours.

    The filling has no gradient; visible positions keep their value and gradient.

    Args:
        value: float (B, C, H, W), zero where hidden.
        mask: of it.
        times: how many rounds.
    """
    known, hidden, _ = mask
    if times == 0:
        return value
    with torch.no_grad():
        # Sums of neighbours divided by 8: exact, without overflow in half precision.
        eighths = value.new_full((value.shape[1], 1, 3, 3), 1 / 8)
        made = value * known
        for _ in range(times):
            count = F.conv2d(known.to(value.dtype), eighths[:1], padding=1).to(wide(value))
            near = hidden & ~known & (count > 0)
            weight = torch.where(near, 1 / count, 0).to(value.dtype)
            made += weight * F.conv2d(made, eighths, padding=1, groups=len(eighths))
            known = known | near
    return torch.addcmul(value, made, hidden.to(value.dtype))


def over_windows(sums: Tensor, share: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution without bias -> partial convolution: divided by the visible share, plus bias.

    Args:
        sums: float (B, C, H, W), of windows that hold zero where hidden.
        share: float (B, 1, H, W) in [0, 1], visible share of each window.
        bias: float (C,).
    """
    found = sums / (share + 1e-8).to(sums.dtype)
    return found if bias is None else found + bias.view(-1, 1, 1)


def wide(x: Tensor) -> torch.dtype:
    """The type of a tensor, at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def over_share(mean: Tensor, share: Tensor) -> Tensor:
    """Turn a mean that counts hidden zeros into one of what is visible, or zero if nothing is."""
    return (mean / share.masked_fill(share == 0, 1)).to(mean.dtype)


def normalised(
    value: Tensor, mask: Mask, mean: Any, variance: Any, options: dict[str, Any]
) -> Tensor:
    """Batch norm in training: with the statistics of the positions that are not hidden.

    Args:
        value: float (B, C, H, W), zero where hidden.
        mask: of it.
        mean: running mean (C,), to be updated; None if there is none.
        variance: running variance (C,), likewise.
        options: of `torch.nn.functional.batch_norm`: momentum, eps, weight, bias.
    """
    x, seen, axes = value.to(wide(value)), ~mask.hidden, (0, 2, 3)
    share = seen.to(x.dtype).mean()
    centre = over_share(x.mean(axes, keepdim=True), share)
    square = (x - centre).masked_fill(~seen, 0).square()
    power = over_share(square.mean(axes, keepdim=True), share)
    unbiased = power * (seen.sum() / (seen.sum() - 1).clamp(min=1))
    for running, new in ((mean, centre), (variance, unbiased)):
        if running is not None:
            running.lerp_(new.detach().flatten().to(running.dtype), options["momentum"])
    result = (x - centre) * (power + options["eps"]).rsqrt()
    if options["weight"] is not None:
        result = result * options["weight"].view(-1, 1, 1)
    if options["bias"] is not None:
        result = result + options["bias"].view(-1, 1, 1)
    made: Tensor = result.to(value.dtype)
    return made
