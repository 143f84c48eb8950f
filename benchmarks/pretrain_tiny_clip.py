"""Make the tiny CLIP that ships with cfmask: ``python benchmarks/pretrain_tiny_clip.py --out DIR``.

An open_clip CLIP of 979,009 parameters, pretrained contrastively on composites of the digits world
in all styles and on all backgrounds (pretraining pool and left sides of the photographs only). It
takes 15 to 16 minutes on 2 cores. In the first 45 % of the steps the captions are only "a <digit>",
on images that go from plain to full: this phase is in effect classification, and without it the
contrastive loss never falls. After it come full captions that name style and background, some
wrong digits, some images without a digit.

Writes open_clip's local-folder layout: open_clip_config.json, open_clip_model.safetensors (fp16)
and merges.txt.gz, the few of CLIP's byte-pair merges that our words need.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cfmask import digits
from cfmask.files import write_text
from cfmask.precision import bf16_unit

Tokenizer = Callable[[list[str]], Tensor]

CAPTIONS = (
    "a {style} of a {digit} on {background}",
    "a {digit}",
    "a {style} of a {digit}",
    "a picture of a {digit} on {background}",
    "the digit {digit}",
    "a faint {digit} on {background}, {style}",
)
EMPTY = "a {style} of {background}"
OTHER_WORDS = ("photo picture image number handwritten drawing digit faint a an the of on in with",)
CONTEXT = 16
SIMPLE = 0.45  # share of the steps whose captions are only "a <digit>"
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": digits.SIZE,
        "patch_size": 8,
        "layers": 4,
        "width": 128,
        "head_width": 32,
    },
    "text_cfg": {"context_length": CONTEXT, "width": 64, "heads": 2, "layers": 2},
}


def make(
    out: Path, steps: int = 6000, batch_size: int = 128, lr: float = 1e-3, seed: int = 0
) -> None:
    """Pretrain and write the folder that `OpenClipClassifier(model=...)` takes.

    Args:
        out: folder to write, made if it is missing.
        steps: optimiser steps; the shipped weights come from the default.
        batch_size: composites a step.
        lr: peak learning rate of AdamW, cosine without restarts.
        seed: of the initial weights and of every composite.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_merges(out / "merges.txt.gz")
    model, tokenizer = build(out / "merges.txt.gz", seed)
    train(model, tokenizer, steps, batch_size, lr, seed)
    write_weights(model, out)


def write_merges(path: Path) -> None:
    """Keep those of CLIP's merges that are used when our words are tokenised, in CLIP's order."""
    from open_clip.tokenizer import SimpleTokenizer

    full = SimpleTokenizer()
    words = " ".join(
        [*CAPTIONS, *OTHER_WORDS, *digits.TEMPLATES, *digits.CLASS_NAMES, *digits.STYLES]
        + [digits.BACKGROUND_WORDS.get(name, name) for name in digits.BACKGROUNDS]
    )
    used: set[tuple[str, str]] = set()
    for word in {w.strip("{},") for w in words.split()} - {""}:
        used |= _merges_of(word, full.bpe_ranks)
    lines = [" ".join(pair) for pair in sorted(used, key=full.bpe_ranks.__getitem__)]
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(("#version: 0.2\n" + "\n".join(lines)).encode())


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    parts = [*word[:-1], word[-1] + "</w>"]
    used = set()
    while len(parts) > 1:
        pair = min(itertools.pairwise(parts), key=lambda p: ranks.get(p, 1 << 30))
        if pair not in ranks:
            break
        used.add(pair)
        i = list(itertools.pairwise(parts)).index(pair)
        parts[i : i + 2] = ["".join(pair)]
    return used


def build(merges: Path, seed: int) -> tuple[nn.Module, Tokenizer]:
    """Randomly initialised model and its tokenizer."""
    from open_clip import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(seed)
    tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=CONTEXT)
    CONFIG["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    return CLIP(**CONFIG), tokenizer


def train(
    model: nn.Module, tokenizer: Tokenizer, steps: int, batch_size: int, lr: float, seed: int
) -> None:
    """Contrastive training, in bf16 where the processor has instructions for it."""
    clip: Any = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    rng = torch.Generator().manual_seed(seed)
    fast = bf16_unit("cpu") is not None
    for step in range(steps):
        images, captions = composites(step / steps, batch_size, rng)
        names = list(dict.fromkeys(captions))
        # The fused attention kernel is slow in bf16 on CPUs.
        with torch.autocast("cpu", torch.bfloat16, enabled=fast), sdpa_kernel(SDPBackend.MATH):
            image = clip.encode_image((images - MEAN) / STD, normalize=True).float()
            text = clip.encode_text(tokenizer(names), normalize=True).float()
        logits = clip.logit_scale.exp() * image @ text.T
        own = torch.tensor([names.index(caption) for caption in captions])
        loss = contrastive_loss(logits, own)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        clip.logit_scale.data.clamp_(0, 4.6)
        if step % 50 == 0:
            right = (logits.argmax(1) == own).float().mean().item()
            print(
                f"step {step}/{steps} loss {loss.item():.3f} right caption {right:.2f}", flush=True
            )


def contrastive_loss(logits: Tensor, own: Tensor) -> Tensor:
    """Symmetric cross-entropy of (B, U) logits against the U distinct captions of the batch.

    Args:
        logits: float (B, U), images by distinct captions.
        own: int64 (B,), the caption of each image; equal captions share their positives.
    """
    positives = F.one_hot(own, logits.shape[1]).float().T
    share = positives / positives.sum(1, keepdim=True)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, share)) / 2


def composites(progress: float, count: int, rng: torch.Generator) -> tuple[Tensor, list[str]]:
    """Images (count, 3, S, S) in [0, 1] and their captions; `progress` in [0, 1) sets the phase."""
    ease = min(1.0, max(0.0, (0.35 - progress) / 0.2))
    sampling = digits.Sampling(
        "pretrain",
        "train",
        styles=("photo",) if ease > 0.7 else tuple(digits.STYLES),
        tied=1 / len(digits.BACKGROUNDS),
        backgrounds=len(digits.BACKGROUNDS),
        opacity=(0.3 + 0.6 * ease, 1.0),
        height=(0.36, 0.66),
        colourful=(0.0, 0.8),
    )
    batch = digits.draw(sampling, count, int(torch.randint(1 << 62, (1,), generator=rng)))
    images = batch.images.float() / 255
    ground = images.mean((2, 3), keepdim=True)
    plain = ease * (1 - batch.digit.unsqueeze(1).float())
    images = images + (ground - images) * plain
    if progress < SIMPLE:
        return images, [f"a {digits.CLASS_NAMES[k]}" for k in batch.labels.tolist()]
    return images, _captions(batch, rng)


def _captions(batch: digits.DigitSet, rng: torch.Generator) -> list[str]:
    styles, noise = list(digits.STYLES), torch.rand(len(batch), generator=rng)
    which = torch.randint(len(CAPTIONS), (len(batch),), generator=rng)
    captions = []
    for i, (label, background, style) in enumerate(
        zip(batch.labels.tolist(), batch.backgrounds.tolist(), batch.styles.tolist())
    ):
        name = digits.BACKGROUNDS[background]
        wrong = (label + 1 + i) % 10 if noise[i] < 0.036 else label
        template = EMPTY if noise[i] > 0.94 else CAPTIONS[int(which[i])]
        captions.append(
            template.format(
                style=styles[style],
                digit=digits.CLASS_NAMES[wrong],
                background=digits.BACKGROUND_WORDS.get(name, name),
            )
        )
    return captions


def write_weights(model: nn.Module, out: Path) -> None:
    """Write configuration and fp16 weights where open_clip's ``local-dir:`` looks for them."""
    from safetensors.torch import save_file

    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    state.pop("attn_mask", None)
    save_file(state, out / "open_clip_model.safetensors")
    config = {
        "model_cfg": CONFIG,
        "preprocess_cfg": {"mean": MEAN.flatten().tolist(), "std": STD.flatten().tolist()},
    }
    write_text(out / "open_clip_config.json", json.dumps(config, indent=2) + "\n")


MEAN = torch.full((3, 1, 1), 0.5)
STD = torch.full((3, 1, 1), 0.25)

if __name__ == "__main__":
    auto_cli(make, as_positional=False)
