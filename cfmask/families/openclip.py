"""open_clip image towers: OpenAI's and LAION's CLIP, and any configuration of one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmask.attention import AttentionMaps, replayed
from cfmask.classifier import Classifier, Layout, Tokens
from cfmask.data.images import Preprocess
from cfmask.errors import InputError, unknown
from cfmask.families import timm as timm_family
from cfmask.heads import ZeroShotHead, check_prompts, zero_shot_weight

TINY_CLIP = Path(__file__).parents[1] / "tiny_clip"


class OpenClipClassifier(Classifier):
    """An open_clip image tower with a zero-shot head from its own text tower, or a linear head.

    Args:
        model: an open_clip model name; a folder in open_clip's local layout (open_clip_config.json,
            weights, and merges.txt.gz if it has its own vocabulary); or `tiny-clip`, which ships
            with the package.
        pretrained: open_clip tag or weights file; None leaves the weights random. Folders bring
            their own.
        class_names: K names, in the order of the labels. The commands take them from the data.
        templates: prompts with one `{}` for the name; the default are OpenAI's 80.
        head: `zero_shot`, or `linear` for a fresh one.

    Raises:
        InputError: unknown model or tag, weights that cannot be had, QuickGELU put in the place of
            GELU or the other way round.
    """

    def __init__(
        self,
        model: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        class_names: Sequence[str] = (),
        templates: Sequence[str] | None = None,
        head: Literal["zero_shot", "linear"] = "zero_shot",
    ) -> None:
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        if templates is None:
            templates = [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]
        if head == "zero_shot":
            check_prompts(class_names, templates)
        clip, tokenizer, config = _open_clip(model, pretrained)
        encoder: nn.Module = clip.visual
        width = config["embed_dim"]
        layer: nn.Module
        if head == "zero_shot":
            layer = ZeroShotHead(zero_shot_weight(clip, tokenizer, class_names, templates))
        else:
            layer = nn.Linear(width, len(class_names))
        preprocess = clip.visual.preprocess_cfg
        size = preprocess["size"]
        spec = {
            "family": "OpenClipClassifier",
            "model": model,
            "config": config,
            "class_names": list(class_names),
            "templates": list(templates),
            "head": head,
            "head_shape": [len(class_names), width],
            "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]),
            "preprocess": Preprocess((size, size) if isinstance(size, int) else tuple(size)).spec(),
        }
        super().__init__(encoder, layer, spec)

    def encode(self, normalised: Tensor, hidden: Tensor | None) -> Tensor:
        """See `Classifier.encode`. The last block is computed for the class token alone.

        Where the same number of patches is removed from every image, their tokens are dropped.
        """
        tower: Any = self.encoder
        if not _reads_class_token(tower):
            return super().encode(normalised, hidden)
        tokens = tower._embeds(normalised)
        if hidden is None:
            return self._from_tokens(tokens)
        kept = ~self.hidden_tokens(hidden)
        counts = kept.sum(1)
        if (counts == counts[0]).all():
            return self._from_tokens(tokens[kept].unflatten(0, (len(tokens), -1)))
        with AttentionMaps(~kept):
            return self._from_tokens(tokens)

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
        features: Tensor = tower._pool(token)[0]
        return features if tower.proj is None else features @ tower.proj

    @classmethod
    def architecture(cls, spec: dict[str, Any]) -> nn.Module:
        """See `Classifier.architecture`."""
        from open_clip.model import _build_vision_tower

        config = spec["config"]
        tower: nn.Module = _build_vision_tower(
            config["embed_dim"], dict(config["vision_cfg"]), config.get("quick_gelu", False)
        )
        return tower

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """See `Classifier.layout_of`."""
        tower: Any = encoder
        if hasattr(tower, "trunk"):
            inner = timm_family.TimmClassifier.layout_of(tower.trunk, image_size)
            return replace(inner, feature_map=f"trunk.{inner.feature_map}")
        if hasattr(tower, "attnpool"):
            return Layout((image_size[0] // 32, image_size[1] // 32), "layer4")
        grid = (int(tower.grid_size[0]), int(tower.grid_size[1]))
        last = f"transformer.resblocks.{len(tower.transformer.resblocks) - 1}.ln_1"
        if tower.attn_pool is not None:
            return Layout(grid, last)
        return Layout(
            grid, last, Tokens(grid, 1, "average" if tower.pool_type == "avg" else "token")
        )


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


def _open_clip(model: str, pretrained: str | None) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and configuration; every failure is one clear line."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    folder = TINY_CLIP if model == "tiny-clip" else Path(model)
    local = (folder / "open_clip_config.json").is_file()
    if not local and model not in open_clip.list_models():
        raise unknown("open_clip model", model, ["tiny-clip", *open_clip.list_models()])
    if not local and pretrained:
        _check_activation(model, pretrained)
    name = f"local-dir:{folder}" if local else model
    # open_clip speaks on the root logger about every step of what it does here.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        clip = open_clip.create_model(name, None if local else pretrained)
        merges = folder / "merges.txt.gz"
        if local and merges.is_file():
            length = clip.context_length
            tokenizer: Any = SimpleTokenizer(bpe_path=str(merges), context_length=length)
        else:
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(
            f"Cannot load open_clip model {model} with {pretrained}: {line}"
        ) from error
    finally:
        logging.disable(level)
    clip.eval()
    return clip, tokenizer, _config(folder if local else None, model)


def _config(folder: Path | None, model: str) -> dict[str, Any]:
    import open_clip

    if folder is None:
        config: dict[str, Any] = open_clip.get_model_config(model)
    else:
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}


def _check_activation(model: str, pretrained: str) -> None:
    """Refuse weights trained with QuickGELU for a GELU model, and the other way round."""
    import open_clip

    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        if Path(pretrained).is_file():
            return
        raise unknown(
            f"weights of {model}", pretrained, open_clip.list_pretrained_tags_by_model(model)
        )
    quick = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    if quick != bool(tag.get("quick_gelu", False)):
        other = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
        raise InputError(
            f"Expected weights trained with {'QuickGELU' if quick else 'GELU'} for {model}, but "
            f"{pretrained} was trained with {'GELU' if quick else 'QuickGELU'}; use model {other}."
        )
