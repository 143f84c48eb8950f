"""Descriptions: what the classes look like, in words -> a zero-shot head.

Letters: K classes, D feature width, n_k descriptors of class k.

Source: Menon & Vondrick 2023 (arXiv 2210.07183) and its released code, rule for rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmask import processes
from cfmask.errors import InputError, unknown
from cfmask.files import read_json
from cfmask.heads import text_features

# Descriptions of our own words that are known by name.
SHIPPED = {"digits": Path(__file__).with_name("described_digits.json")}
# Descriptors that follow on "which" as they are.
VERBS = ("has", "often", "typically", "may", "can")


def sentence(class_name: str, descriptor: str) -> str:
    """`CLASS, which has DESCRIPTOR.`, with the released code's rule for the verb.

    It looks at first letters alone: "antlers" begins with an a and becomes "which is antlers".

    Examples:
        >>> from cfmask.descriptions import sentence
        >>> sentence("hen", "two legs"), sentence("elk", "antlers")
        ('hen, which has two legs.', 'elk, which is antlers.')
    """
    if descriptor.startswith(("a", "used")):
        return f"{class_name}, which is {descriptor}."
    verb = "" if descriptor.startswith(VERBS) else "has "
    return f"{class_name}, which {verb}{descriptor}."


def read_descriptions(path: str | Path, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Descriptors by class, in the order of the classes, of a JSON file {class: [descriptor, …]}.

    An empty list is one empty descriptor, as in the released code.

    Args:
        path: the file, or a key of `SHIPPED`.
        class_names: of the model.

    Raises:
        InputError: no such file, a class that is missing or is none of the model's.
    """
    found = read_json(SHIPPED.get(str(path), Path(path)))
    if not isinstance(found, dict) or not found:
        raise InputError(
            f'Expected {{"class": ["descriptor", …], …}} in {path}, but got {found!r:.60}.'
        )
    for name, texts in found.items():
        if name not in class_names:
            raise unknown(f"class in {path}", name, class_names)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"Expected a list of texts for {name!r} in {path}, but got {texts!r:.60}."
            )
    missing = [name for name in class_names if name not in found]
    if missing:
        raise InputError(
            f"Expected descriptors of all {len(class_names)} classes in {path}, but {missing[0]!r} "
            "is missing; give it a list, which may be empty."
        )
    return {name: found[name] or [""] for name in class_names}


@torch.no_grad()
def described_weight(
    clip: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    descriptions: Mapping[str, Sequence[str]],
    normalise: bool = True,
) -> Tensor:
    """Weight float (K, D) of a zero-shot head from descriptions.

    Row k: embed the sentence of every descriptor of class k, L2-normalise each, average, multiply
    by exp(logit_scale). A logit without the scale is then the mean cosine of the descriptors.

    Args:
        clip: a model with `encode_text` and `logit_scale`; left on the CPU.
        tokenizer: texts -> int64 (N, context length).
        descriptions: descriptors by class, as `read_descriptions` gives them.
        normalise: L2-normalise the mean too, as for prompts; the released code does not, so that a
            class of scattered descriptors scores lower there.
    """
    read = descriptor_features(clip, tokenizer, descriptions)
    mean = torch.stack([texts.mean(0) for texts in read.values()])
    weight: Tensor = (F.normalize(mean, dim=-1) if normalise else mean) * _scale(clip)
    return weight


@torch.no_grad()
def descriptor_features(
    clip: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    descriptions: Mapping[str, Sequence[str]],
) -> dict[str, Tensor]:
    """Unit features float (n_k, D) of the sentences of each class, on the CPU.

    Arguments are those of `described_weight`.
    """
    clip.to(processes.device())
    found = {}
    for name, texts in descriptions.items():
        tokens = tokenizer([sentence(name, text) for text in texts])
        found[name] = F.normalize(text_features(clip, tokens), dim=-1).cpu()
    clip.to("cpu")
    return found


def _scale(clip: Any) -> Tensor:
    scale: Tensor = clip.logit_scale.exp()
    return scale
