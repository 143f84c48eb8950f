"""Modules that are no classifiers, counted by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from cfmask import Request, ShiftReport, find_shifts

NAMES = ("ash", "birch", "oak")


TRANSFORM = transforms.Compose(
    [
        transforms.Resize(12),
        transforms.CenterCrop(8),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    ]
)


def sets_of(root: Path):
    return find_shifts(["folders"], Request(root, NAMES))


def net() -> nn.Module:
    torch.manual_seed(1)
    # Dropout tells whether it was put in eval mode.
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3), nn.Dropout(0.5))


def by_hand(module: nn.Module, root: Path, transform=TRANSFORM) -> dict[str, tuple[int, int]]:
    """Right and all pictures of each set, by a loop."""
    module.eval()
    counts = {}
    for name in ("id", "sketch"):
        right = total = 0
        for path in sorted((root / name).rglob("*.png")):
            with torch.no_grad():
                logits = module(transform(Image.open(path).convert("RGB"))[None])[0]
            right += NAMES[int(logits.argmax())] == path.parent.name
            total += 1
        counts[f"folders/{name}"] = right, total
    module.train()
    return counts


def counts(report: ShiftReport, model: str) -> dict[str, tuple[int, int]]:
    rows = [row for row in report.of("accuracy") if row.model == model and row.total]
    return {row.shift: (row.correct, row.total) for row in rows}
