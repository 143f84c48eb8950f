"""Layer masking: run an unmodified CNN so that hidden pixels have no influence (arXiv 2211.14646).

A mask travels with the activations: the images are wrapped in a tensor with its hidden positions,
and each torch function that the model calls on it is looked up in the table `_NAMES` for the rule
that computes values and mask of the result. The model is not edited. A function without a rule is
an error; add its name to the table.

Letters: B images, C channels, H x W positions of a feature map, (h, w) patch grid.

- Hidden positions hold zero after every operation, and gradients stop there.
- A convolution sees hidden positions filled from their visible neighbours; its output is visible
  where its window holds anything visible.
- Where masked maps meet (sum, product, concatenation) a position is visible if all see it.
- A global average is over visible positions; with it, or with flattening, map and mask end. With
  nothing visible it is zero: the output is the model's answer to a zero feature, and finite.
- Statistics over positions (batch norm in training) leave hidden ones out.

The released code differs in some of this: see `MaskRules`, and `applying` to use its rules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from traceback import walk_tb
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask.errors import InputError
from cfmask.internals import internal
from cfmask.masked_maps import (
    Mask,
    MaskRules,
    Operation,
    filled,
    joined,
    normalised,
    over_share,
    over_windows,
    wide,
)

__all__ = ["LayerMaskingError", "MaskRules", "applying", "masked_forward", "unmask"]

_make_subclass, _plain_tensors = internal("make_subclass"), internal("plain_tensors")
_OURS = MaskRules()
_APPLIED = ContextVar("rules", default=_OURS)


class LayerMaskingError(InputError):
    """The model calls an operation that cannot carry a mask; the text names it and its module."""


@contextlib.contextmanager
def applying(rules: MaskRules) -> Iterator[None]:
    """Context in which layer masking goes by these rules."""
    token = _APPLIED.set(rules)
    try:
        yield
    finally:
        _APPLIED.reset(token)


def masked_forward(model: nn.Module, images: Tensor, hidden: Tensor) -> Tensor:
    """Run `model` on `images` as if the hidden patches had never been there.

    Args:
        model: CNN of torch functions that have a rule; changed by nothing but its own forward.
        images: float (B, 3, H, W) as the model takes them; hidden pixels may hold anything.
        hidden: bool (B, h, w), True = hidden, on the device of `images`; h divides H, w divides W.

    Returns:
        What `model(images)` returns, e.g. logits (B, K); a feature map is zero where hidden.

    Raises:
        InputError: `images` or `hidden` has the wrong shape or type.
        LayerMaskingError: an operation of the model cannot carry the mask.
    """
    pixels = _hidden_pixels(images, hidden)
    try:
        mask = Mask(~pixels, pixels, _APPLIED.get())
        output = model(_wrap(images.masked_fill(pixels, 0), mask, is_zero=True))
        output = _clean(output) if isinstance(output, _Masked) else output
        if not isinstance(output, Tensor) or output.is_meta:
            raise LayerMaskingError("The output is no tensor, or torch could not follow its making")
    except LayerMaskingError as error:
        raise LayerMaskingError(f"{error} (in {_place(model, error)}); use a fill") from error
    return output


def unmask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inside `masked_forward`: values of a map (B, C, H, W), and bool (B, H, W), True = visible."""
    return _clean(_map(unmask, x)), ~_map(unmask, x).mask.hidden[:, 0]


def _hidden_pixels(images: Tensor, hidden: Tensor) -> Tensor:
    """Check the arguments; give each pixel the flag of the patch that covers it: (B, 1, H, W)."""
    got = f"but got {tuple(images.shape)} and {hidden.dtype} {tuple(hidden.shape)}"
    if images.ndim != 4 or hidden.ndim != 3 or hidden.dtype != torch.bool:
        raise InputError(f"Expected images (B, 3, H, W) and bool hidden (B, h, w), {got}.")
    (height, width), (rows, columns) = images.shape[2:], hidden.shape[1:]
    if len(images) != len(hidden) or 0 in (rows, columns) or height % rows or width % columns:
        raise InputError(f"Expected one grid an image that divides its height and width, {got}.")
    tall = hidden.repeat_interleave(height // rows, dim=1)
    return tall.repeat_interleave(width // columns, dim=2).unsqueeze(1)


def _place(model: nn.Module, error: BaseException) -> str:
    """Name the innermost module whose code was running when `error` was raised."""
    owners = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    module = [model, *(owner for owner in owners if isinstance(owner, nn.Module))][-1]
    name = next((name for name, child in model.named_modules() if child is module), "")
    return f"module '{name}', {type(module).__name__}" if name else type(module).__name__


class _Masked(Tensor):
    """A value and its mask, as the tensor that the model expects.

    The tensor itself is empty, on the meta device: code that bypasses `__torch_function__`
    (TorchScript, C++ extensions) finds no numbers and cannot pass silently.
    """

    mask: Mask  # expanded to the batch and the positions of the value
    space: int  # axis of H, the next is W: 2 for (B, C, H, W), 1 for (B, H, W, C)
    _value: Tensor

    @property
    def value(self) -> Tensor:
        """The plain tensor, zero where hidden if `MaskRules.outside` is zero."""
        # An autograd.Function runs without gradient and then marks the shell, not the value.
        with _plain_tensors():
            if not self.is_leaf:
                raise LayerMaskingError(
                    f"Layer masking cannot go through {type(self.grad_fn).__name__}"
                )
        return self._value

    @classmethod
    def __torch_function__(
        cls, func: Operation, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(getattr(func, "__name__", "").strip("_"))
        if rule is None:
            raise _refusal(func, "has no rule")
        return rule(func, *args, **(kwargs or {}))


def _wrap(value: Tensor, mask: Mask, space: int = 2, *, is_zero: bool = False) -> _Masked:
    """Join value and mask; hidden positions are set to zero unless `is_zero`."""
    mask = mask.expanded((len(value), 1, *value.shape[space : space + 2]))
    if not is_zero and mask.rules.outside == "zero":
        value = value * ~_spread(mask.hidden, value.ndim, space)
    empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
    shell: _Masked = _make_subclass(_Masked, empty, value.requires_grad)
    shell._value, shell.mask, shell.space = value, mask, space
    return shell


def _clean(x: _Masked) -> Tensor:
    """The plain tensor, zero where hidden."""
    if x.mask.rules.outside == "zero":
        return x.value
    return x.value * ~_spread(x.mask.hidden, x.ndim, x.space)


def _spread(flags: Tensor, ndim: int, space: int) -> Tensor:
    """View (B, 1, H, W) flags so that they broadcast over a value with H on axis `space`."""
    before, after = (1,) * (space - 1), (1,) * (ndim - space - 2)
    return flags.reshape(len(flags), *before, *flags.shape[2:], *after)


def _refusal(op: Operation, why: str) -> LayerMaskingError:
    return LayerMaskingError(
        f"Layer masking cannot go through the operation '{getattr(op, '__name__', op)}': it {why}"
    )


def _map(op: Operation, x: object, space: int = 2) -> _Masked:
    """Refuse what is not a masked (B, C, H, W) map, or (B, H, W, C) map if `space` is 1."""
    if isinstance(x, _Masked) and x.space == space and x.ndim == 4:
        return x
    raise _refusal(op, f"needs a masked {'(B, C, H, W)' if space == 2 else '(B, H, W, C)'} map")


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor) and not isinstance(argument, _Masked) and argument.is_meta:
        raise LayerMaskingError("Layer masking meets a map made by code torch could not follow")
    return argument.value if isinstance(argument, _Masked) else argument


def _join(
    op: Operation, operands: Sequence[_Masked], way: str = "intersection"
) -> tuple[Mask, int]:
    """The joint mask of operands, and their axis of H, which must be the same."""
    space, ndim = operands[0].space, operands[0].ndim
    if any((other.space, other.ndim) != (space, ndim) for other in operands):
        raise _refusal(op, "mixes layouts")
    masks = [operand.mask for operand in operands]
    return masks[0] if len(masks) == 1 else joined(masks, way), space


def _elementwise(op: Operation, *args: Any, is_zero: bool, **kwargs: Any) -> _Masked:
    """Run `op` position by position; in place stays in place. `is_zero`: it keeps zeros zero."""
    arguments = (*args, *kwargs.values())
    operands = [a for a in arguments if isinstance(a, _Masked)]
    mask, space = _join(op, operands)
    result = op(*map(_plain, args), **{key: _plain(a) for key, a in kwargs.items()})
    if any(result is a for a in arguments):
        raise _refusal(op, "writes into a tensor that has no mask")
    owner = next((o for o in operands if result is o.value), None)
    if owner is None:
        return _wrap(result, mask, space, is_zero=is_zero)
    owner.mask = mask
    if not is_zero and mask.rules.outside == "zero":
        result.mul_(~_spread(mask.hidden, result.ndim, space))
    return owner


_zero_to_zero = partial(_elementwise, is_zero=True)
_any_to_zero = partial(_elementwise, is_zero=False)


def _divide(op: Operation, *args: Any, **kwargs: Any) -> _Masked:
    if any(isinstance(a, _Masked) for a in (*args[1:], *kwargs.values())):
        raise _refusal(op, "divides by a masked map")
    return _zero_to_zero(op, *args, **kwargs)


def _hardtanh(
    op: Operation, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, *args: Any, **kw: Any
) -> _Masked:
    return _elementwise(op, input, min_val, max_val, *args, is_zero=min_val <= 0 <= max_val, **kw)


def _conv2d(
    op: Operation,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> _Masked:
    """Fill, convolve, and pool the mask with the same window."""
    x, kernel = _map(op, input), weight.shape[2:]
    rules, how = x.mask.rules, (stride, padding, dilation)
    steps = [dilation] if isinstance(dilation, int) else [*dilation]
    reach = max((size - 1) * step for size, step in zip(kernel, steps * 2, strict=False))
    # Positions farther than `reach` from all visible ones are in no window with a visible output.
    times = max(kernel) if rules.outside == "kept" else min(max(kernel), reach)
    value = filled(_clean(x), x.mask, times if rules.padding == "neighbours" else 0)
    # Counting the visible positions in each window is max-pooling under any kind of padding.
    ones = torch.ones(1, 1, *kernel, device=weight.device)
    mask = x.mask.through(lambda flags: op(flags, ones, None, *how) > 0.5)
    if rules.padding != "partial":
        return _wrap(op(value, weight, bias, *how, groups), mask)
    seen, ones = x.mask.visible.to(wide(x)), ones.to(wide(x))
    share = op(seen, ones / ones.numel(), None, *how)
    return _wrap(over_windows(op(value, weight, None, *how, groups), share, bias), mask)


def _pool(op: Operation, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Pool values and mask alike; a global average pool takes the visible positions only."""

    def pool(t: Tensor) -> Any:
        return op(t, *args, **kwargs)

    x = _map(op, input)
    pooled = _wrap(pool(_clean(x)), x.mask.through(pool))
    if "avg" not in op.__name__ or pooled.shape[2:] != (1, 1):
        return pooled
    if x.mask.rules.mean == "all":
        return pooled.value
    seen = (~x.mask.hidden).to(wide(x))
    return over_share(pooled.value, pool(seen) / pool(torch.ones_like(seen)))


def _mean(op: Operation, x: Tensor, dim: Any = None, keepdim: bool = False, **kw: Any) -> Tensor:
    x = _over_space(op, x, dim)
    mean: Tensor = op(_clean(x), dim, keepdim, **kw)
    if x.mask.rules.mean == "all":
        return mean
    share = _spread(~x.mask.hidden, x.ndim, x.space).to(wide(x)).mean(dim, keepdim)
    return over_share(mean, share)


def _norm(op: Operation, x: Tensor, p: Any = "fro", dim: Any = None, *args: Any, **kw: Any) -> Any:
    return op(_clean(_over_space(op, x, dim)), p, dim, *args, **kw)


def _over_space(op: Operation, x: Tensor, dim: Any) -> _Masked:
    """Refuse reductions that keep one axis of the space or join the images of the batch."""
    axes = {axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim or [])}
    if isinstance(x, _Masked) and {x.space, x.space + 1} <= axes and 0 not in axes:
        return x
    raise _refusal(op, "does not reduce exactly the positions of each image")


def _batch_norm(
    op: Operation, input: Tensor, mean: Any, variance: Any, *args: Any, **options: Any
) -> _Masked:
    """In training, take and remember the statistics of the positions that are not hidden."""
    x = _map(op, input)
    if op is not F.batch_norm:  # which hands on its options by keyword
        raise _refusal(op, "is not torch.nn.functional.batch_norm")
    if not options["training"]:
        return _any_to_zero(op, x, mean, variance, *args, **options)
    return _wrap(normalised(_clean(x), x.mask, mean, variance, options), x.mask)


def _last_axis(op: Operation, input: Tensor, *args: Any, **kwargs: Any) -> _Masked:
    """Linear maps and layer norms, which act on the channels of a (B, H, W, C) map."""
    if "norm" in op.__name__ and len(args[0]) != 1:
        raise _refusal(op, "takes statistics over positions")
    return _any_to_zero(op, _map(op, input, space=1), *args, **kwargs)


def _cat(op: Operation, tensors: Sequence[Tensor], dim: int = 0) -> _Masked:
    maps = [t for t in tensors if isinstance(t, _Masked)]
    mask, space = _join(op, maps, maps[0].mask.rules.join)
    if dim % tensors[0].ndim in (0, space, space + 1):
        raise _refusal(op, "joins maps along another axis than the channels")
    return _wrap(op([_plain(t) for t in tensors], dim), mask, space)


def _split(op: Operation, x: _Masked, *args: Any, **kwargs: Any) -> tuple[_Masked, ...]:
    parts, kept = op(x.value, *args, **kwargs), slice(x.space, x.space + 2)
    if any(len(part) != len(x) or part.shape[kept] != x.shape[kept] for part in parts):
        raise _refusal(op, "cuts the map along another axis than the channels")
    return tuple(_wrap(part, x.mask, x.space, is_zero=True) for part in parts)


def _pad(op: Operation, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    x = _map(op, input)
    mask = x.mask.through(lambda flags: F.pad(flags, list(pad[:4]), mode))
    return _wrap(op(_clean(x), pad, mode, value), mask)


def _permute(op: Operation, x: _Masked, *args: Any, **kwargs: Any) -> _Masked:
    # Axis n of the probe has size n + 1, so the sizes of the result tell where each axis went.
    probe = torch.empty(tuple(range(1, x.ndim + 1)), device="meta")
    order = [size - 1 for size in op(probe, *args, **kwargs).shape]
    space = order.index(x.space)
    if order[0] != 0 or order[space + 1 : space + 2] != [x.space + 1]:
        raise _refusal(op, "moves the batch or separates H from W")
    return _wrap(op(x.value, *args, **kwargs), x.mask, space, is_zero=True)


def _reshape(op: Operation, x: _Masked, *args: Any, **kwargs: Any) -> Any:
    """Regroup channels, or flatten each image: then hidden positions stay zero, unmarked."""
    result = op(x.value, *args, **kwargs)
    if len(result) == len(x) and result.ndim == 2:
        return op(_clean(x), *args, **kwargs)
    if len(result) == len(x) and x.shape[x.space :] == result.shape[-2:] and result.ndim > 2:
        return _wrap(result, x.mask, result.ndim - 2, is_zero=True)
    raise _refusal(op, "mixes positions with channels or images")


def _query(op: Operation, x: _Masked, *args: Any, **kwargs: Any) -> Any:
    result = op(x.value, *args, **kwargs)
    if isinstance(result, Tensor) and op.__name__ == "__get__":
        raise _refusal(getattr(op, "__self__", op), "takes a tensor out of a masked map")
    return result


# Names are torch's own, without the underscores of in-place and operator forms.
_NAMES: dict[Operation, str] = {
    _zero_to_zero: "relu relu6 leaky_relu prelu elu selu celu gelu silu mish hardswish "
    "tanh neg mul imul rmul dropout dropout2d feature_dropout contiguous clone detach to float "
    "half bfloat16 double",
    _any_to_zero: "add iadd radd sub isub rsub addcmul clamp sigmoid hardsigmoid softplus",
    _query: "get size dim numel len stride is_contiguous is_floating_point "
    "new_empty new_zeros new_ones new_full register_hook",
    _hardtanh: "hardtanh",
    _divide: "div itruediv truediv",
    _last_axis: "linear layer_norm",
    _conv2d: "conv2d",
    _batch_norm: "batch_norm",
    _pool: "max_pool2d avg_pool2d adaptive_avg_pool2d",
    _mean: "mean",
    _norm: "norm",
    _pad: "pad",
    _cat: "cat concat concatenate",
    _split: "split chunk",
    _permute: "permute transpose movedim",
    _reshape: "view reshape flatten unflatten",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
