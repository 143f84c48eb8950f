"""A CLIP and its relevance, written out slowly."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def slow_clip(classifier, images):
    """Logits and attention maps of an open_clip ViT, head by head from the bare weights."""
    weights = {k: v.detach() for k, v in classifier.encoder.named_parameters()}
    x = (images - classifier.mean) / classifier.std
    x = F.conv2d(x, weights["conv1.weight"], stride=weights["conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    cls = weights["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([cls, x], 1) + weights["positional_embedding"]

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        scaled = (x - mean) / (var + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = norm(x, "ln_pre")
    maps = []
    blocks = classifier.encoder.transformer.resblocks
    for i in range(len(blocks)):
        name = f"transformer.resblocks.{i}"
        w, b = weights[f"{name}.attn.in_proj_weight"], weights[f"{name}.attn.in_proj_bias"]
        heads = blocks[i].attn.num_heads
        qkv = (norm(x, f"{name}.ln_1") @ w.T + b).chunk(3, -1)
        q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in qkv)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        attention = scores.exp() / scores.exp().sum(-1, keepdim=True)
        if not attention.requires_grad:
            attention.requires_grad_()
        maps.append(attention)
        y = (attention @ v).transpose(1, 2).flatten(2)
        y = y @ weights[f"{name}.attn.out_proj.weight"].T
        x = x + y + weights[f"{name}.attn.out_proj.bias"]
        y = norm(x, f"{name}.ln_2") @ weights[f"{name}.mlp.c_fc.weight"].T
        y = y + weights[f"{name}.mlp.c_fc.bias"]
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + y @ weights[f"{name}.mlp.c_proj.weight"].T + weights[f"{name}.mlp.c_proj.bias"]
    features = norm(x, "ln_post")[:, 0] @ weights["proj"]
    unit = features / features.norm(dim=-1, keepdim=True)
    return unit @ classifier.head.weight.T + classifier.head.bias, maps


def slow_relevance(logits, labels, maps):
    """Chefer's matrices, whole, image by image."""
    score = sum(logits[i, k] for i, k in enumerate(labels.tolist()))
    gradients = torch.autograd.grad(score, maps)
    rows = []
    for n in range(len(labels)):
        size = maps[0].shape[-1]
        total = torch.eye(size, dtype=maps[0].dtype)
        for a, g in zip(maps, gradients):
            step = torch.stack([(a[n, h] * g[n, h]).clamp(min=0) for h in range(a.shape[1])])
            total = total + step.mean(0) @ total
        rows.append(total[0, 1:] / (total[0, 1:].max() + 1e-8))
    return torch.stack(rows)
