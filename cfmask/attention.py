"""Read and restrict the attention of any encoder while it runs, without touching its modules.

Every attention in torch, open_clip and timm calls one of two torch functions. The contexts of this
file replace both: `AttentionOutputs` records what is needed to recompute the maps, `VisibleTokens`
hides tokens. Modules are not edited and have no hooks, so nothing has to be restored.

Letters: B images, H heads, L keys, Q queries (Q = L in self-attention), d head width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cfmask.internals import internal

_open_modes = internal("function_modes")
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)

Mode = TypeVar("Mode", bound="Attention")


class Given(NamedTuple):
    """The options of an attention.

    Attributes:
        mask: bool (…, Q, L), True = attends, or float to add to the scores.
        dropout: probability.
        causal: True if a query attends to no later key.
        scale: of the scores; None for d^-½.
    """

    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None


class Attention(TorchFunctionMode):
    """Context in which a subclass computes every attention by its `attend`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        """Outputs (B, H, Q, d) of queries (B, H, Q, d), keys and values (B, H, L, d)."""
        raise NotImplementedError

    def again(self) -> Attention:
        """A new context that computes the same attention; what it records is discarded."""
        raise NotImplementedError

    def __enter__(self: Mode) -> Mode:
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
            return self._product(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _product(
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
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        return self.attend(query, key, value, Given(attn_mask, dropout_p, is_causal, scale))

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
        out = self.attend(q, k, v, Given(of.attn_mask, of.dropout_p if of.training else 0.0))
        merged = out.permute(2, 0, 1, 3).flatten(2)
        return F.linear(merged, of.out_proj_weight, of.out_proj_bias), None


@dataclass(frozen=True)
class Attended:
    """A computed attention, from which its map can be recomputed.

    Attributes:
        query: (B, H, Q, d).
        key: (B, H, L, d).
        value: (B, H, L, d).
        output: (B, H, Q, d), part of the graph.
        given: see `Given`.
        kept: (B, H, Q, L), the factors of dropout; None without dropout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    given: Given
    kept: Tensor | None = None

    def map(self) -> Tensor:
        """The map (B, H, Q, L): softmax over the last dimension, without graph."""
        return attention_map(self.query.detach(), self.key.detach(), self.given)

    def gradient(self, of_output: Tensor) -> Tensor:
        """Gradient (B, H, Q, L) of the map, given that of the output (B, H, Q, d)."""
        of_map = of_output.to(self.value.dtype) @ self.value.detach().mT
        return of_map if self.kept is None else of_map * self.kept


class AttentionOutputs(Attention):
    """Context that records every attention without its map, so that fused kernels can be used.

    A map is recomputed when it is needed, and its gradient when that of the output arrives: one
    attention at a time, so that the maps of all blocks are never in memory together.

    Attributes:
        seen: in order of computation; outputs are part of a graph even if no parameter requires a
            gradient.

    Examples:
        >>> with AttentionOutputs() as attention:
        ...     logits = classifier(images)
        >>> maps = [attended.map() for attended in attention.seen]
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Attended] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        """See `Attention.attend`."""
        kept = None
        if given.dropout:
            # A fused kernel does not tell what it drops.
            attention = attention_map(query, key, given)
            kept = F.dropout(torch.ones_like(attention), given.dropout)
            output = (attention * kept).to(value.dtype) @ value
        else:
            output = F.scaled_dot_product_attention(
                query, key, value, given.mask, 0.0, given.causal, scale=given.scale
            )
        if not output.requires_grad and torch.is_grad_enabled():
            output.requires_grad_()
        self.seen.append(Attended(query, key, value, output, given, kept))
        return output

    def again(self) -> Attention:
        """See `Attention.again`."""
        return AttentionOutputs()


class VisibleTokens(Attention):
    """Context in which no query attends to a hidden token.

    Args:
        hidden: bool (B, L), True = hidden. If there are fewer keys than L they are the last tokens.
            Where all keys are hidden, the output is zero.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def attend(self, query: Tensor, key: Tensor, value: Tensor, given: Given) -> Tensor:
        """See `Attention.attend`."""
        hidden = self.hidden[:, None, None, -key.shape[-2] :]
        # A softmax over no key is NaN, and so is its gradient: attend to all, of value zero.
        some = ~hidden.all(-1, keepdim=True)
        mask = ~(hidden & some)
        if given.causal or given.mask is not None:
            scores = query.new_zeros(1, 1, query.shape[-2], key.shape[-2])
            mask = _masked(scores, given).masked_fill(~mask, -math.inf)
        return F.scaled_dot_product_attention(
            query, key, value * some, mask, given.dropout, scale=given.scale
        )

    def again(self) -> Attention:
        """See `Attention.again`."""
        return VisibleTokens(self.hidden)


def attention_map(query: Tensor, key: Tensor, given: Given) -> Tensor:
    """softmax(q kᵀ · scale + mask) of (B, H, Q, d) and (B, H, L, d), as (B, H, Q, L)."""
    scale = query.shape[-1] ** -0.5 if given.scale is None else given.scale
    return _masked(query @ key.mT * scale, given).softmax(-1)


def _masked(scores: Tensor, given: Given) -> Tensor:
    if given.causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if given.mask is None:
        return scores
    hide = given.mask.dtype == torch.bool
    return scores.masked_fill(~given.mask, -math.inf) if hide else scores + given.mask


def eager() -> AbstractContextManager[Any]:
    """Context in which compiled modules run eagerly, so that hooks and modes see each step."""
    inside: bool = torch.compiler.is_compiling()
    return nullcontext() if inside else torch.compiler.set_stance("force_eager")


def reading() -> list[Attention]:
    """The open contexts of this file, outermost first."""
    return [mode for mode in _open_modes() if isinstance(mode, Attention)]


def replayed() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a checkpointed block's forward pass and of its recomputation (`context_fn`).

    Both must compute attention alike, or other tensors are saved.
    """
    active = reading()
    return nullcontext(), active[-1].again() if active else nullcontext()
