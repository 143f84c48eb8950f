"""Disks that are full."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

TENSORS = {"x": torch.zeros(2_000_000)}


WRITERS = {
    "torch": lambda partial: torch.save(TENSORS, partial),
    "torch to an open file": lambda partial: torch.save(TENSORS, partial.open("wb")),
    "safetensors": lambda partial: save_file(TENSORS, partial),
    "plain": lambda partial: partial.write_bytes(bytes(2 * 10**6)),
}
