"""Text: the text tower of a CLIP, and captions as its tokens.

Letters: N captions, L tokens of a caption, D feature width, K classes, T templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask import processes
from cfmask.errors import InputError
from cfmask.heads import check_prompts

# Texts -> int64 (N, context length).
Tokenizer = Callable[[list[str]], Tensor]
# Captions that are embedded at a time.
AT_ONCE = 1024


class TextTower(nn.Module):
    """Captions as tokens -> features of the space that the image features lie in.

    Args:
        clip: an open_clip model in eval mode; what makes no text features of it is dropped.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        for part in ("visual", "text_decoder"):
            if hasattr(clip, part):
                delattr(clip, part)
        self.clip: Any = clip
        # It changes all logits alike, which no softmax sees.
        if getattr(clip, "logit_bias", None) is not None:
            self.clip.logit_bias.requires_grad_(False)

    @property
    def scale(self) -> Tensor:
        """What logits are multiplied by, exp(logit_scale), a scalar with gradient."""
        return self.clip.logit_scale.exp().squeeze()  # type: ignore[no-any-return]

    @property
    def tower(self) -> Any:
        """The transformer with its embeddings: a part of the model, or the model itself."""
        return getattr(self.clip, "text", self.clip)

    @property
    def is_causal(self) -> bool:
        """Whether a caption's feature is read at its end, and knows nothing of what follows."""
        tower = self.tower
        pooled = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
        return (
            getattr(tower, "attn_mask", None) is not None
            and getattr(tower, "cls_emb", None) is None
            and pooled in ("argmax", "eos")
        )

    @property
    def projection(self) -> Tensor | None:
        """What maps the transformer's width to the features, float (width, D), if it is linear."""
        given = getattr(self.tower, "text_projection", None)
        weight = given.weight.T if isinstance(given, nn.Linear) else given
        return weight if isinstance(weight, Tensor) else None

    def ends(self, tokens: Tensor) -> Tensor:
        """How many tokens of each caption are read, int64 (N,), of tokens int64 (N, L)."""
        if not self.is_causal:
            return torch.full((len(tokens),), tokens.shape[1])
        tower = self.tower
        pooled = getattr(tower, "text_pool_type", None) or tower.pool_type
        last: Any = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
        marked = tokens if pooled == "argmax" else torch.eq(tokens, last).int()
        return marked.argmax(-1) + 1

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit features float32 (N, D) of tokens int64 (N, L); L up to the context length.

        Only a causal tower (see `is_causal`) takes fewer tokens than its context length.
        """
        features = self._short(tokens) if self.is_causal else self.clip.encode_text(tokens)
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def _short(self, tokens: Tensor) -> Tensor:
        tower, length = self.tower, tokens.shape[1]
        known = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        known = tower.transformer(known, attn_mask=tower.attn_mask[:length, :length])
        # What comes before the end is not read: norm and projection act on each token alone.
        end = self.ends(tokens) - 1
        pooled: Tensor = tower.ln_final(known[torch.arange(len(end), device=end.device), end])
        given = tower.text_projection
        if isinstance(given, nn.Linear):
            projected: Tensor = given(pooled)
            return projected
        return pooled if given is None else pooled @ given


def looks_are_free(values: Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def marks(text: TextTower, tokenizer: Tokenizer, what: str) -> Tensor:
    """The tokens that begin and end a text, int64 (2,); those of words have lower numbers.

    Raises:
        InputError: a text tower with tokens of another kind, for `what`.
    """
    begin, end = tokenizer([""])[0, :2].tolist()
    if not text.is_causal or not 0 < begin < end:
        raise InputError(
            f"Expected a text tower that reads CLIP's tokens for {what}, but got one that reads "
            "others; use FLYP."
        )
    return torch.tensor([begin, end])


class Captions(nn.Module):
    """Captions of classes: each name in each template, as tokens.

    Args:
        text: the tower that will read them.
        tokenizer: of that tower.
        class_names: K names.
        templates: T prompts with one `{}` each for the name.

    Attributes:
        longest: number of tokens of the longest caption.
    """

    tokens: Tensor
    ends: Tensor

    def __init__(
        self,
        text: TextTower,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        templates: Sequence[str],
    ) -> None:
        super().__init__()
        check_prompts(class_names, templates)
        tokens = tokenizer([t.format(name) for name in class_names for t in templates])
        ends = text.ends(tokens)
        self.longest = int(ends.max())
        shape = len(class_names), len(templates)
        tokens = tokens[:, : self.longest].int().view(*shape, -1)
        # They are made anew from the names of the classes.
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("ends", ends.view(shape), persistent=False)

    def drawn(self, labels: Tensor) -> Tensor:
        """A template for each label, int64 (B,), the same however many devices share the batch."""
        count = self.tokens.shape[1]
        return processes.own_rows(
            len(labels), lambda rows: torch.randint(count, (rows,), device=labels.device)
        )

    def of(self, labels: Tensor, templates: Tensor) -> Tensor:
        """The captions of labels int64 (B,) in templates int64 (B,), as tokens int64 (B, L).

        On a CPU they are as long as the longest of them, elsewhere as the longest of all: there
        each look at a value waits for the device.
        """
        tokens, length = self.tokens[labels, templates].long(), self.longest
        if looks_are_free(labels):
            length = int(self.ends[labels, templates].max())
        return tokens[:, :length]

    @torch.no_grad()
    def embedded(self, text: TextTower) -> Iterator[Tensor]:
        """Unit features of all captions, some classes at a time: float (k, T, D)."""
        count = self.tokens.shape[1]
        for part in self.tokens.split(max(1, AT_ONCE // count)):
            yield text(part.flatten(0, 1).long()).unflatten(0, (-1, count))

    @torch.no_grad()
    def head(self, text: TextTower) -> Tensor:
        """Weight float (K, D) of the zero-shot head that a tower gives; see `zero_shot_weight`."""
        rows = torch.cat([features.mean(1) for features in self.embedded(text)])
        return F.normalize(rows, dim=-1) * text.scale

    @torch.no_grad()
    def contexts(self, text: TextTower) -> Tensor:
        """Unit features float (T, D) of the templates: means over all classes."""
        total = sum(features.sum(0) for features in self.embedded(text))
        assert isinstance(total, Tensor)
        return F.normalize(total, dim=-1)
