"""Multiplications counted by shape."""

from __future__ import annotations

import torch


def products(cnn) -> dict[torch.nn.Module, int]:
    """FLOPs of each convolution for one image: a product for each weight at each place."""
    found = {}

    def note(layer, args, output):
        found[layer] = 2 * output.shape[2] * output.shape[3] * layer.weight.numel()

    layers = [m for m in cnn.modules() if isinstance(m, torch.nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        cnn.eval()(torch.rand(1, 3, *cnn.image_size))
    for handle in handles:
        handle.remove()
    return found
