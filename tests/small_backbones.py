"""Small random classifiers of every kind of backbone."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

from cfmask import OpenClipClassifier, TimmClassifier
from cfmask.classifier import Classifier
from cfmask.families.pretrained import TINY_CLIP

SMALL_TEXT = {"context_length": 16, "vocab_size": 679, "width": 32, "heads": 2, "layers": 1}
# Towers of every structure that open_clip has, small.
TOWERS = {
    "vit": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "vit average": {
        "layers": 3,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "pool_type": "avg",
        "no_ln_pre": True,
        "final_ln_after_pool": True,
    },
    "vit average, norm first": {
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "pool_type": "avg",
    },
    "coca": {
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "resnet": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
    "siglip": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
}
TIMM = [
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_vit_relpos",
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
]


def clip_folder(root: Path, tower: str, **config) -> Path:
    """A randomly initialised CLIP of open_clip's local layout, with the tiny CLIP's words."""
    folder = root / tower.replace(" ", "_").replace(",", "")
    if folder.exists():
        return folder
    folder.mkdir()
    side = 160 if "timm_model_name" in TOWERS[tower] else 64
    width = 96 if tower == "siglip" else 24
    model = {
        "embed_dim": width,
        "vision_cfg": {"image_size": side, **TOWERS[tower]},
        "text_cfg": SMALL_TEXT,
        **({"custom_text": True, "init_logit_bias": -10} if tower == "siglip" else {}),
        **config,
    }
    text = json.dumps({"model_cfg": model, "preprocess_cfg": {"size": side}})
    (folder / "open_clip_config.json").write_text(text)
    (folder / "merges.txt.gz").write_bytes((TINY_CLIP / "merges.txt.gz").read_bytes())
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{folder}")
    randomise(clip)
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def randomise(model):
    """Small noise on every tensor, so that no zero or one hides a defect."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "logit" not in name:
                value.add_(0.1 * torch.rand_like(value))


def build(kind: str, folders: Path, size=None) -> Classifier:
    """A small random classifier of one kind: a tower of TOWERS or a timm model."""
    if kind in TOWERS:
        folder = str(clip_folder(folders, kind))
        return OpenClipClassifier(folder, None, ["cat", "dog"], ["a {}"], image_size=size).eval()
    torch.manual_seed(0)
    classifier = TimmClassifier(kind, False, ["cat", "dog"], image_size=size).eval()
    randomise(classifier)
    return classifier
