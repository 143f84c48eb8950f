"""The 1000 ImageNet classes: WordNet ids in the order of the head, subsets, ReaL labels.

The lists are those that timm ships.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from cfmask.internals import timm_text


@cache
def synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids in the order of the head classes, which is their sorted order."""
    return tuple(timm_text("imagenet_synsets.txt").split())


@cache
def class_names() -> tuple[str, ...]:
    """OpenAI's names of the 1000 classes, for prompts, in the same order; open_clip ships them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@cache
def numbers() -> dict[str, int]:
    """Head class by WordNet id."""
    return {wnid: k for k, wnid in enumerate(synsets())}


def is_imagenet(folders: Sequence[str]) -> bool:
    """Whether class folders are the 1000 of ImageNet, whose images are read as stored."""
    return len(folders) == 1000 and tuple(sorted(folders)) == synsets()


@cache
def subset(name: str) -> tuple[int, ...]:
    """The 200 head classes of ImageNet-R ("r") or ImageNet-A ("a"), sorted."""
    return tuple(sorted(map(int, timm_text(f"imagenet_{name}_indices.txt").split())))


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """ReaL labels of the 50,000 validation images in order: head classes, for some images none.

    Source: Beyer et al. 2020, "Are we done with ImageNet?".
    """
    return tuple(map(tuple, json.loads(timm_text("imagenet_real_labels.json"))))
