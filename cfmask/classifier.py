"""Classifier: the one model interface. Its families are files in `cfmask/families/`.

Letters: B images, K classes, D feature width, (h, w) patch grid, L tokens (prefix tokens first).
Images are float (B, 3, H, W) in [0, 1]: normalisation is inside, so student, teacher and relevance
share a batch. Features are taken before any L2 normalisation.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import Self

from cfmask.errors import InputError, unknown
from cfmask.heads import HeadOrigin, empty_head
from cfmask.images import check_unit
from cfmask.layer_masking import masked_forward
from cfmask.spec import Spec
from cfmask.text import TextTower, Tokenizer
from cfmask.trust import class_path

Pooling = Literal["token", "prefix", "average", "all", "map", "other"]


@dataclass(frozen=True)
class Tokens:
    """How a transformer's tokens hold the patches, and how they become one feature.

    Attributes:
        grid: (h, w) patches.
        prefix: number of class, distillation and register tokens before the patches.
        pooled: what the feature is read from: the first "token", the mean of all "prefix" tokens
            (distilled DeiT), the "average" of the patches, the mean of "all" tokens, a "map"
            (attention pooling by a learned query), or "other", which no attention maps explain.
    """

    grid: tuple[int, int]
    prefix: int
    pooled: Pooling

    def readout(self, device: torch.device) -> Tensor:
        """Share of each token in the pooled feature, float (L,) with sum 1.

        It is zero for "map": there the pool's own attention says what is read.

        Raises:
            InputError: the pooling is "other".
        """
        self.check("AttentionRelevance", "GradCAM")
        share = torch.zeros(self.prefix + self.grid[0] * self.grid[1], device=device)
        parts: dict[str, slice] = {
            "token": slice(1),
            "prefix": slice(self.prefix),
            "average": slice(self.prefix, None),
            "all": slice(None),
            "map": slice(0),
        }
        read = share[parts[self.pooled]]
        read.fill_(1 / max(1, len(read)))
        return share

    def check(self, what: str, instead: str) -> None:
        """Raise an InputError for `what` if attention maps do not lead to the feature."""
        if self.pooled == "other":
            raise InputError(
                f"Expected a transformer whose attention maps lead to its feature for {what}, but "
                f"got one of another kind; use {instead}."
            )

    def leave_out(self, values: Tensor, hidden: Tensor) -> Tensor:
        """Tokens (B, L, C) changed so that average pooling ignores the hidden ones, bool (B, L).

        Hidden tokens become the mean of the visible ones, or zero where none is visible; the mean
        over all tokens is then the mean over the visible ones. Other poolings get them unchanged.
        """
        if self.pooled not in ("average", "all"):
            return values
        first = 0 if self.pooled == "all" else self.prefix
        patches, gone = values[:, first:], hidden[:, first:].unsqueeze(2)
        count = (~gone).sum(1, keepdim=True).clamp(min=1)
        mean = patches.masked_fill(gone, 0).sum(1, keepdim=True) / count
        return torch.cat([values[:, :first], torch.where(gone, mean.to(values), patches)], 1)


@dataclass(frozen=True)
class Layout:
    """Where relevance finds the patches of an encoder.

    Attributes:
        grid: (h, w) of the patches: a transformer's own, a CNN's last stage.
        feature_map: name of the module whose output Grad-CAM reads.
        tokens: None for a CNN.
        channels_last: True if feature maps are (B, h, w, C), as in hierarchical transformers.
    """

    grid: tuple[int, int]
    feature_map: str
    tokens: Tokens | None = None
    channels_last: bool = False


class Classifier(nn.Module, ABC):
    """An image encoder with a head: images (B, 3, H, W) in [0, 1] -> logits (B, K).

    A subclass has an `__init__` of its own, which makes the encoder, its head and their `Spec`, and
    says in `layout_of` where the encoder's patches lie. To come back from a file as that class it
    gives `architecture`, or the whole of `from_spec`.

    Args:
        encoder: normalised images -> features (B, D).
        head: features -> logits.
        spec: what rebuilds both without their weights.

    Attributes:
        encoder: see above.
        head: see above.
        spec: see above, with the import path of the class.
    """

    mean: Tensor
    std: Tensor
    # Whether the encoder's code works with any order of dimensions in memory; `view` may not.
    any_layout = False
    # Whether the values of a batch have been looked at.
    _looked = False

    def __init__(self, encoder: nn.Module, head: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.spec = replace(spec, class_path=class_path(type(self)))
        self.class_names = spec.class_names
        self.preprocess = spec.preprocess
        self.image_size = spec.preprocess.size
        self.layout = self.layout_of(encoder, self.image_size)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name), dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def architecture(cls, spec: Spec) -> nn.Module:
        """The encoder of a spec, randomly initialised, without reading or fetching weights."""
        raise InputError(
            f"Expected {cls.__name__} to have a method architecture or from_spec, which rebuilds "
            "it from its spec, but it has none."
        )

    @classmethod
    @abstractmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """Where the patches of an encoder of this family lie."""

    @classmethod
    def from_spec(cls, spec: Spec) -> Classifier:
        """A classifier of this class as the spec says; its weights are still to be loaded.

        `__init__`, which may load pretrained weights, is not run: a subclass that sets further
        attributes there gives its own `from_spec`.

        Raises:
            InputError: a kind of head that is not in `cfmask.heads.HEADS`.
        """
        head = empty_head(spec.head, len(spec.class_names), spec.width)
        classifier = cls.__new__(cls)
        Classifier.__init__(classifier, cls.architecture(spec), head, spec)
        return classifier

    def text_tower(self) -> tuple[TextTower, Tokenizer]:
        """The text tower that the encoder was pretrained with, as it was then, and its tokenizer.

        Raises:
            InputError: there is none.
        """
        raise InputError(
            f"Expected a classifier with a text tower for this method, but {self.name} comes "
            "without one; use --model open_clip:NAME/TAG, or another method."
        )

    def with_head(self, head: nn.Module, spec: Spec) -> Self:
        """A classifier of the same encoder, which it shares, with another head and its spec."""
        other = copy.copy(self)
        # A shallow copy has the dict of its parts in common with the other.
        other._modules = {**self._modules, "head": head}
        other.spec, other.class_names = spec, spec.class_names
        return other

    def suit(self, device: torch.device) -> None:
        """Lay out a CNN's weights as its device reads them fastest: channels last.

        On a CPU a step of a network of depthwise convolutions takes a fifth less time.
        """
        if self.any_layout and device.type in ("cpu", "cuda") and self.tokens is None:
            self.encoder.to(memory_format=torch.channels_last)

    @property
    def name(self) -> str:
        """The encoder's name, for messages and reports."""
        return self.spec.model

    @property
    def head_from(self) -> HeadOrigin:
        """Where the head's weights come from, a key of `cfmask.heads.HEAD_ORIGINS`.

        For a class of one's own it is `chance` (random) unless its spec says otherwise. The probe
        that precedes training fits only such heads, so a class that brings a good one sets
        `head_from` in its spec.
        """
        kinds: dict[str, HeadOrigin] = {"zero_shot": "text", "own": "weights"}
        return self.spec.head_from or kinds.get(self.spec.head, "chance")

    @head_from.setter
    def head_from(self, origin: HeadOrigin) -> None:
        self.spec = replace(self.spec, head_from=origin)

    @property
    def tokens(self) -> Tokens | None:
        """How the tokens hold the patches; None for a CNN."""
        return self.layout.tokens

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""
        return self.layout.grid

    @property
    def feature_map(self) -> str:
        """Name of the module inside the encoder whose output Grad-CAM reads."""
        return self.layout.feature_map

    def layer(self, name: str) -> nn.Module:
        """Module of the encoder by name; an InputError names the nearest."""
        modules: dict[str, nn.Module] = dict(self.encoder.named_modules())
        if name not in modules:
            raise unknown(f"layer of {self.name}", name, modules)
        return modules[name]

    def features(
        self, images: Tensor, hidden: Tensor | None = None, visible: int | None = None
    ) -> Tensor:
        """Features (B, D), not normalised and at least float32, of images (B, 3, H, W) in [0, 1].

        Args:
            images: float (B, 3, H, W) in [0, 1].
            hidden: bool (B, h, w), True = this patch is removed, not replaced. A transformer's
                tokens never attend to it (its class token stays); a CNN runs by layer masking
                (arXiv 2211.14646). It may be as fine as pixels, (B, H, W): a transformer then
                keeps the patches that are visible as wholes. None removes nothing.
            visible: how many patches every image keeps, if that is known. Plain transformers then
                drop the hidden tokens, which is cheaper. It is not counted here: a GPU would have
                to be waited for.

        Raises:
            InputError: images of another shape than the encoder takes, whole numbers, values far
                outside of [0, 1] (looked for in every batch on a CPU, and in the first elsewhere,
                where each look waits for the device), or patches removed from an encoder for which
                that is not defined.
        """
        if images.ndim != 4 or images.shape[1:] != (3, *self.image_size):
            raise InputError(
                f"Expected images (B, 3, {', '.join(map(str, self.image_size))}) for {self.name}, "
                f"but got {tuple(images.shape)}; set the image size of data or classifier."
            )
        if not torch.compiler.is_compiling():
            check_unit(images, values=images.device.type == "cpu" or not self._looked)
            self._looked = True
        with self._kernels(images.device):
            normalised, found = (images - self.mean) / self.std, None
            if visible and hidden is not None and self.tokens is not None:
                # Visible tokens first, in their order.
                order = self.hidden_tokens(hidden).byte().argsort(dim=1, stable=True)
                found = self.encode_tokens(normalised, order[:, : self.tokens.prefix + visible])
            return full_precision(self.encode(normalised, hidden) if found is None else found)

    def encode(self, normalised: Tensor, hidden: Tensor | None) -> Tensor:
        """Features (B, D) of normalised images, by layer masking where patches are hidden.

        Families override it for transformers, and to save computation.
        """
        if hidden is not None:
            return masked_forward(self.encoder, normalised, hidden)
        features: Tensor = self.encoder(normalised)
        return features

    def encode_tokens(self, normalised: Tensor, kept: Tensor) -> Tensor | None:
        """Features (B, D) of normalised images, read from the tokens int64 (B, n) alone.

        None, as here, of an encoder that cannot drop tokens: `encode` then hides the others.
        """
        return None

    def hidden_tokens(self, hidden: Tensor) -> Tensor:
        """Removed patches bool (B, h, w) as tokens bool (B, L); prefix tokens are never removed.

        A finer mask, as of pixels, removes a patch of which any part is hidden.

        Raises:
            InputError: a grid that the encoder's own does not divide, or no such tokens.
        """
        grid = self.tokens.grid if self.tokens else (0, 0)
        if 0 in grid or any(own % side for own, side in zip(hidden.shape[1:], grid)):
            raise InputError(
                f"Expected a mask that a grid of {grid} divides to remove patches from "
                f"{self.name}, but got {tuple(hidden.shape[1:])}; use the encoder's own grid or a "
                "fill."
            )
        assert self.tokens is not None
        self.tokens.check("removed patches", "a fill")
        patches = hidden.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).any(4).any(2)
        return F.pad(patches.flatten(1), (self.tokens.prefix, 0))

    def classify(self, features: Tensor) -> Tensor:
        """Logits float32 (B, K) of features (B, D); never in reduced precision."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(full_precision(features))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, K) of images (B, 3, H, W) in [0, 1]."""
        return self.classify(self.features(images))

    def _kernels(self, device: torch.device) -> AbstractContextManager[Any]:
        """On CPUs the fused attention kernel is far slower in bf16 than plain matrix products."""
        if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return nullcontext()
        # Checkpointed blocks are recomputed outside of this context.
        again = any(getattr(m, "grad_checkpointing", False) for m in self.encoder.modules())
        return nullcontext() if again and torch.is_grad_enabled() else sdpa_kernel(SDPBackend.MATH)


def chosen(tokens: Tensor, kept: Tensor) -> Tensor:
    """Those of the tokens (B, L, C) that int64 (B, n) names, (B, n, C)."""
    return tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def full_precision(values: Tensor) -> Tensor:
    """Reduced-precision floats as float32; float32 and float64 pass."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
