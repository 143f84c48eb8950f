"""open_clip image towers: OpenAI's and LAION's CLIP, and any configuration of one's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmask.attention import VisibleTokens, replayed
from cfmask.classifier import Classifier, Layout, Pooling, Tokens, chosen
from cfmask.descriptions import described_weight, read_descriptions
from cfmask.errors import InputError
from cfmask.families.pretrained import (
    TINY_CLIP,
    build_tower,
    load_clip,
    local_folder,
    logit_bias,
    tokenizer_of,
)
from cfmask.families.timm import (
    Sides,
    TimmClassifier,
    as_size,
    check_patches,
    drops_tokens,
    kept_features,
    resize,
    token_features,
)
from cfmask.heads import ZeroShotHead, check_prompts, zero_shot_weight
from cfmask.images import Preprocess
from cfmask.internals import embed, global_pool, need, pool
from cfmask.layer_masking import masked_forward, unmask
from cfmask.spec import Spec
from cfmask.text import TextTower, Tokenizer

# In place of a tag: no weights.
UNTRAINED = "random"
# Pixels a position of CLIP's ResNets covers.
RESNET_STEP = 32


class OpenClipClassifier(Classifier):
    """An open_clip image tower with a zero-shot head from its own text tower, or a linear head.

    Args:
        model: an open_clip model name; a folder in open_clip's local layout (open_clip_config.json,
            weights, and merges.txt.gz if it has its own vocabulary); or `tiny-clip`, which ships
            with the package.
        pretrained: open_clip tag or weights file; `random` or None leaves the weights random.
            Folders bring their own.
        class_names: K names, in the order of the labels. The commands take them from the data.
        templates: prompts with one `{}` for the name; the default are OpenAI's 80.
        head: `zero_shot`, or `linear` for a fresh one.
        image_size: side in pixels, or (H, W), if another than the model's own. Position embeddings
            are resampled to it.
        descriptions: JSON file {class: [descriptor, …]}, or `digits` for ours, from which the
            zero-shot head is made in place of `templates`; see `cfmask.descriptions`.
        normalise: L2-normalise the mean of a class's descriptions; false as in the released code.

    Raises:
        InputError: unknown model or tag, weights that cannot be had, an image size that the model
            does not take, QuickGELU put in the place of GELU or the other way round.
    """

    any_layout = True

    def __init__(
        self,
        model: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        class_names: Sequence[str] = (),
        templates: Sequence[str] | None = None,
        head: Literal["zero_shot", "linear"] = "zero_shot",
        image_size: int | tuple[int, int] | None = None,
        descriptions: str | None = None,
        normalise: bool = True,
    ) -> None:
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        if templates is None:
            templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
        if head == "zero_shot":
            check_prompts(class_names, templates)
        described = {}
        if descriptions:
            if head != "zero_shot":
                raise InputError(
                    f"Expected head: zero_shot for descriptions, but got head: {head}; leave one "
                    "of them out."
                )
            texts = read_descriptions(descriptions, class_names)
            described = {"descriptions": texts, "normalise": normalise}
            templates = []
        # Deep in a configuration the parser reads null as a text.
        pretrained = None if pretrained in (None, UNTRAINED, "None", "") else os.fspath(pretrained)
        model = os.fspath(model)
        clip, config = load_clip(model, pretrained)
        tower: Any = clip.visual
        width = config["embed_dim"]
        layer: nn.Module
        if head == "zero_shot":
            tokenizer = tokenizer_of(model, clip)
            if described:
                weight = described_weight(clip, tokenizer, texts, normalise)
            else:
                weight = zero_shot_weight(clip, tokenizer, class_names, templates)
            layer = ZeroShotHead(weight, logit_bias(clip))
        else:
            layer = nn.Linear(width, len(class_names))
        preprocess = tower.preprocess_cfg
        size = as_size(image_size) or as_size(preprocess["size"])
        assert size is not None
        resize_tower(tower, size, model)
        spec = Spec(
            model,
            tuple(class_names),
            Preprocess(size, interpolation=preprocess.get("interpolation", "bicubic")),
            preprocess["mean"],
            preprocess["std"],
            head,
            width,
            options={
                "pretrained": pretrained,
                "config": config,
                "templates": list(templates),
                **described,
            },
        )
        super().__init__(tower, layer, spec)
        self._made_of = model, pretrained

    # Model and weights that the commands were asked for; unknown of what comes from a file, which
    # may not say what is loaded.
    _made_of: tuple[str, str | None] | None = None

    def text_tower(self) -> tuple[TextTower, Tokenizer]:
        """See `Classifier.text_tower`. Weights files and runs hold the image tower alone."""
        if self._made_of is None:
            return super().text_tower()
        clip, _ = load_clip(*self._made_of)
        return TextTower(clip), tokenizer_of(self._made_of[0], clip)

    def pretrained_text_tower(self, trust: bool = False) -> tuple[TextTower, Tokenizer]:
        """The text tower of the model and weights that the encoder was once made of.

        Args:
            trust: load them although a file names them, and neither the package nor open_clip
                publishes them.

        Raises:
            InputError: the file is not trusted, or the weights were random.
        """
        from open_clip import list_pretrained

        model, tag = self._made_of or (self.spec.model, self.spec.options.get("pretrained"))
        folder = local_folder(model)
        if not tag and folder is None:
            raise InputError(
                f"Expected an image tower that was pretrained with its text tower, but "
                f"{model} began with random weights."
            )
        published = folder == TINY_CLIP or (model, tag) in list_pretrained()
        if not (self._made_of or published or trust):
            raise InputError(
                f"Refused the text tower of {model} with {tag}: a file names it, and its weights "
                "are none that open_clip publishes; give --trust true if you know who made it."
            )
        clip, _ = load_clip(model, tag)
        return TextTower(clip), tokenizer_of(model, clip)

    def encode(self, normalised: Tensor, hidden: Tensor | None) -> Tensor:
        """See `Classifier.encode`. The last block is computed for the class token alone."""
        tower: Any = self.encoder
        hide = None if hidden is None or self.tokens is None else self.hidden_tokens(hidden)
        if _reads_class_token(tower):
            with nullcontext() if hide is None else VisibleTokens(hide):
                return self._from_tokens(embed(tower, normalised))
        if hasattr(tower, "trunk") and self.tokens is not None:
            features: Tensor = tower.head(
                token_features(tower.trunk, self.tokens, normalised, hide)
            )
            return features
        if hidden is not None and hasattr(tower, "attnpool"):
            return masked_forward(_VisiblePool(tower), normalised, hidden)
        if hide is not None:
            return self._visible(normalised, hide)
        return super().encode(normalised, hidden)

    def encode_tokens(self, normalised: Tensor, kept: Tensor) -> Tensor | None:
        """See `Classifier.encode_tokens`."""
        tower: Any = self.encoder
        if _reads_class_token(tower):
            return self._from_tokens(chosen(embed(tower, normalised), kept))
        if hasattr(tower, "trunk") and drops_tokens(tower.trunk):
            features: Tensor = tower.head(kept_features(tower.trunk, normalised, kept))
            return features
        return None

    def _visible(self, normalised: Tensor, hidden: Tensor) -> Tensor:
        """Features (B, D) that read no hidden token, bool (B, L), of a tower of another pooling."""
        tower: Any = self.encoder
        with VisibleTokens(hidden):
            values = tower.transformer(embed(tower, normalised))
            if self.tokens is None or self.tokens.pooled != "average":
                pooled = pool(tower, values)
            elif tower.final_ln_after_pool:
                pooled = pool(tower, self.tokens.leave_out(values, hidden))
            else:
                values = self.tokens.leave_out(tower.ln_post(values), hidden)
                pooled = global_pool(tower, values)
        features: Tensor = pooled if tower.proj is None else pooled @ tower.proj
        return features

    def _from_tokens(self, tokens: Tensor) -> Tensor:
        """Features (B, D) of embedded tokens (B, L, width), the class token first."""
        tower: Any = self.encoder
        *blocks, last = tower.transformer.resblocks
        again = tower.transformer.grad_checkpointing and torch.is_grad_enabled()
        for block in blocks:
            if again:
                tokens = checkpoint(
                    _run_block, block, tokens, use_reentrant=False, context_fn=replayed
                )
            else:
                tokens = _run_block(block, tokens)
        token = _run_block(last, tokens, only_class=True)
        features: Tensor = pool(tower, token)
        return features if tower.proj is None else features @ tower.proj

    @classmethod
    def architecture(cls, spec: Spec) -> nn.Module:
        """See `Classifier.architecture`."""
        tower = build_tower(spec.options.get("config"), spec.model)
        resize_tower(tower, spec.preprocess.size, spec.model)
        return tower

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """See `Classifier.layout_of`."""
        tower: Any = encoder
        if hasattr(tower, "trunk"):
            inner = TimmClassifier.layout_of(tower.trunk, image_size)
            return replace(inner, feature_map=f"trunk.{inner.feature_map}")
        if hasattr(tower, "attnpool"):
            return Layout((image_size[0] // RESNET_STEP, image_size[1] // RESNET_STEP), "layer4")
        need("open_clip_torch")
        grid = (int(tower.grid_size[0]), int(tower.grid_size[1]))
        last = f"transformer.resblocks.{len(tower.transformer.resblocks) - 1}.ln_1"
        pooled: Pooling = "average" if tower.pool_type == "avg" else "token"
        return Layout(grid, last, Tokens(grid, 1, "map" if tower.attn_pool else pooled))


class _VisiblePool(nn.Module):
    """A ModifiedResNet for `masked_forward`: its attention pool reads the visible positions alone.

    Args:
        tower: an open_clip ModifiedResNet.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of masked images (B, 3, H, W)."""
        tower = self.tower
        for stage in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = stage(x)
        values, visible = unmask(x)
        tokens = Tokens((visible.shape[1], visible.shape[2]), 0, "average")
        hidden = ~visible.flatten(1)
        # The pool's query is the mean over all positions.
        values = tokens.leave_out(values.flatten(2).mT, hidden).mT.view_as(values)
        with VisibleTokens(F.pad(hidden, (1, 0))):
            features: Tensor = tower.attnpool(values)
        return features


def resize_tower(tower: Any, size: Sides, name: str) -> None:
    """Let a tower take images of `size` (H, W), in place, by resampled position embeddings."""
    if hasattr(tower, "trunk"):
        resize(tower.trunk, size, name)
    elif hasattr(tower, "attnpool"):
        check_patches(size, (RESNET_STEP, RESNET_STEP), name)
        side = tower.image_size // RESNET_STEP
        grid = (size[0] // RESNET_STEP, size[1] // RESNET_STEP)
        pool = tower.attnpool
        pool.positional_embedding = _resampled(pool.positional_embedding, (side, side), grid)
    else:
        check_patches(size, tower.patch_size, name)
        grid = (size[0] // tower.patch_size[0], size[1] // tower.patch_size[1])
        old = tower.positional_embedding
        tower.positional_embedding = _resampled(old, tower.grid_size, grid)
        tower.grid_size, tower.image_size = grid, size


def _resampled(embedding: nn.Parameter, old: Sides, new: Sides) -> nn.Parameter:
    """Position embeddings (1 + P, width), the class token's first, for another grid."""
    from timm.layers import resample_abs_pos_embed

    if tuple(old) == new:
        return embedding
    with torch.no_grad():
        whole = resample_abs_pos_embed(embedding.unsqueeze(0), list(new), list(old))[0]
    return nn.Parameter(whole, embedding.requires_grad)


def _run_block(block: Any, tokens: Tensor, only_class: bool = False) -> Tensor:
    """Tokens (B, L, width) after a residual block, or the class token (B, 1, width) alone.

    Its attention is computed batch first: `nn.MultiheadAttention` turns the batch round, and where
    no gradient is wanted torch then multiplies each position by its own copy of the weights.
    """
    attn, known = block.attn, block.ln_1(tokens)
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, known.shape[-1]
    if only_class:
        tokens = tokens[:, :1]
        query = F.linear(known[:, :1], weight[:width], bias[:width])
        key, value = F.linear(known, weight[width:], bias[width:]).chunk(2, -1)
    else:
        query, key, value = F.linear(known, weight, bias).chunk(3, -1)
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    tokens = tokens + block.ls_1(attn.out_proj(attended))
    after: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    return after


def _reads_class_token(tower: Any) -> bool:
    """Whether the feature is the class token of plain blocks, so that the others end unread."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    return (
        type(tower) is VisionTransformer
        and tower.attn_pool is None
        and tower.pool_type == "tok"
        and not tower.output_tokens
        and tower.transformer.batch_first
        and all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)
    )
