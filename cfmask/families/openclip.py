"""open_clip image towers: OpenAI's and LAION's CLIP, and any configuration of one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmask.attention import AttentionMaps
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
        for block in blocks:
            checkpointed = tower.transformer.grad_checkpointing and torch.is_grad_enabled()
            tokens = (
                checkpoint(block, tokens, use_reentrant=False) if checkpointed else block(tokens)
            )
        known = last.ln_1(tokens)
        attended = last.attn(known[:, :1], known, known, need_weights=False)[0]
        token = tokens[:, :1] + last.ls_1(attended)
        token = token + last.ls_2(last.mlp(last.ln_2(token)))
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
