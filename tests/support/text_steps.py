"""What steps with the text tower draw and see, and their losses, number by number."""

from __future__ import annotations

import math

import torch


def moved(module, seed=0, by=0.05):
    """The same module, its weights a little elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * p.abs().mean() * torch.randn(p.shape, generator=generator))
    return module


def rows(features):
    """Unit vectors as lists of float64."""
    values = features.detach().double()
    return (values / values.norm(dim=1, keepdim=True)).tolist()


def dot(one, other):
    return math.fsum(a * b for a, b in zip(one, other))


def table(scale, images, texts):
    """Logits, row by row."""
    return [[float(scale) * dot(f, t) for t in texts] for f in images]


def turned(logits):
    return [list(column) for column in zip(*logits)]


def log_softmax(row):
    top = max(row)
    total = math.log(math.fsum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


def cross_entropy(logits):
    return -math.fsum(log_softmax(row)[i] for i, row in enumerate(logits)) / len(logits)


def contrast(logits):
    return (cross_entropy(logits) + cross_entropy(turned(logits))) / 2


def divergence(teacher, student):
    """KL(teacher ‖ student), mean over rows."""
    total = 0.0
    for t, s in zip(teacher, student):
        p, q = log_softmax(t), log_softmax(s)
        total += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q))
    return total / len(teacher)


def norm(matrix):
    return math.sqrt(math.fsum(x * x for row in matrix.tolist() for x in row))


def seen(method, images, tokens):
    """Features and scale of the tuned towers."""
    text = method.text.clip.encode_text(padded(method, tokens))
    return (
        rows(method.classifier.features(images)),
        rows(text),
        method.text.clip.logit_scale.exp().item(),
    )


def padded(method, tokens):
    """Tokens at the context length, as open_clip wants them."""
    return torch.nn.functional.pad(tokens, (0, method.text.clip.context_length - tokens.shape[1]))


def drawn(method, labels):
    """The captions that the next step draws."""
    torch.manual_seed(5)
    tokens = method.by_class.of(labels, method.by_class.drawn(labels))
    torch.manual_seed(5)
    return tokens
