"""Run folders that were never trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from cfmask import save_classifier
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.families.openclip import OpenClipClassifier

SETS = ["digits/id", "digits/sketch"]


QUICK = ["--shifts", json.dumps(SETS), "--images=30"]


def plant_run(folder: Path, tiny_clip: OpenClipClassifier, seed: int = 0) -> Path:
    """A run folder whose tuned model is the starting point with noise on it."""
    folder.mkdir(parents=True)
    save_classifier(tiny_clip, folder / PRETRAINED)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in tiny_clip.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
    save_classifier(tiny_clip, folder / WEIGHTS)
    evaluation = {"shifts": SETS, "images": 30, "wise": [0.5]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": evaluation}))
    return folder
