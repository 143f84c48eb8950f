"""Read and restrict the attention of any encoder while it runs, without touching its modules.

Every attention in torch, open_clip and timm ends in one of two torch functions. While an
`AttentionMaps` context is open, both are computed explicitly, so that the post-softmax maps are
part of the graph. No module is edited and no hook is set, so nothing has to be put back.

Letters: B images, H heads, L keys, Q queries (Q = L in self-attention), d head width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cfmask.internals import internal

_open_modes = internal("function_modes")
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class AttentionMaps(TorchFunctionMode):
    """Context in which every attention map is recorded, in order of computation.

    Args:
        hidden: bool (B, L), True = no query attends to this token; None hides nothing. Attention
            over fewer keys than L is over the last tokens. Where all keys are hidden, it is zero.

    Attributes:
        maps: float (B, H, Q, L) tensors, softmax over the last dimension, each part of the graph of
            what follows it (also where no parameter requires a gradient).

    Example:
        >>> with AttentionMaps() as attention:
        ...     logits = classifier(images)
        >>> gradients = torch.autograd.grad(logits.sum(), attention.maps)
    """

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.hidden = hidden
        self.maps: list[Tensor] = []

    def __enter__(self) -> AttentionMaps:
        self._eager = eager()
        self._eager.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._eager.__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(q kᵀ · scale + mask) v of (B, H, Q, d), (B, H, L, d), (B, H, L, d)."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -math.inf)
        if attn_mask is not None:
            hide = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hide else scores + attn_mask
        if self.hidden is not None:
            hidden = self.hidden[:, None, None, -scores.shape[-1] :]
            # A softmax over nothing is not a number, and so is its gradient: its values are zero.
            some = ~hidden.all(-1, keepdim=True)
            scores, value = scores.masked_fill(hidden & some, -math.inf), value * some
        attention = scores.softmax(-1)
        if not attention.requires_grad and torch.is_grad_enabled():
            attention.requires_grad_()
        self.maps.append(attention)
        if dropout_p:
            attention = F.dropout(attention, dropout_p)
        return attention.to(value.dtype) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """What `nn.MultiheadAttention` computes, for inputs of shape (L, B, H · d)."""
        given = _MULTI_HEAD.bind(*args, **kwargs)
        given.apply_defaults()
        of = SimpleNamespace(**given.arguments)
        unusual = (of.key_padding_mask, of.bias_k, of.bias_v, of.static_k, of.static_v)
        if of.add_zero_attn or any(x is not None for x in unusual):
            raise ValueError(
                "Expected nn.MultiheadAttention without padding mask or extra keys, but got "
                "one that has them; use GradCAM for this encoder."
            )
        weights = (of.q_proj_weight, of.k_proj_weight, of.v_proj_weight)
        if not of.use_separate_proj_weight:
            weights = of.in_proj_weight.chunk(3)
        biases = [None] * 3 if of.in_proj_bias is None else of.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (of.num_heads, -1)).permute(1, 2, 0, 3)
            for x, w, b in zip((of.query, of.key, of.value), weights, biases)
        )
        out = self._attend(q, k, v, of.attn_mask, of.dropout_p if of.training else 0.0)
        merged = out.permute(2, 0, 1, 3).flatten(2)
        return F.linear(merged, of.out_proj_weight, of.out_proj_bias), None


def eager() -> AbstractContextManager[Any]:
    """Context in which compiled modules run as written, so that hooks and modes see each step."""
    inside: bool = torch.compiler.is_compiling()
    return nullcontext() if inside else torch.compiler.set_stance("force_eager")


def reading() -> list[AttentionMaps]:
    """The open `AttentionMaps` contexts, outermost first."""
    return [mode for mode in _open_modes() if isinstance(mode, AttentionMaps)]


def replayed() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a checkpointed block's forward pass and of its repetition (`context_fn`).

    The repetition must compute attention just as the forward pass did, or it saves other tensors.
    """
    active = reading()
    return nullcontext(), AttentionMaps(active[-1].hidden) if active else nullcontext()
