"""Class similarity: how near two ImageNet classes are in WordNet, by Wu and Palmer.

Source: Wu and Palmer 1994 (arXiv cmp-lg/9406033); the definition is that of NLTK's
`Synset.wup_similarity`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cfmask.data.file_index import cache_folder
from cfmask.errors import UNFIT, InputError, one_line
from cfmask.files import write_whole
from cfmask.wordnet import class_names, synsets

Array = npt.NDArray[np.float64]
INSTALL = "pip install 'cfmask[wordnet]' && python -m nltk.downloader wordnet"


def class_similarity(names: Sequence[str], wanted: bool | None) -> Array | None:
    """Similarity of the classes of a model, float (1000, 1000) in (0, 1]; 1 on the diagonal.

    NLTK finds a dog and itself 0.72 to 0.81 alike; here a right answer is 1, as in arXiv
    2211.14646. The matrix takes some seconds and is kept in the user's cache.

    Args:
        names: classes of the model.
        wanted: True to insist; None to go without where it cannot be had, False never to look.

    Returns:
        None if the classes are not ImageNet's, or NLTK or its WordNet are not installed.

    Raises:
        InputError: `wanted`, and it cannot be had.
    """
    if wanted is False:
        return None
    try:
        if tuple(names) != class_names():
            raise InputError(
                "Expected the 1000 classes of ImageNet, which have WordNet ids, for their "
                f"similarity, but got {len(names)} others; leave --wordnet out."
            )
        found = _kept()
        np.fill_diagonal(found, 1.0)
        return found
    except InputError:
        if wanted:
            raise
        return None


def _kept() -> Array:
    folder = cache_folder()
    path = folder / "wordnet-wup.safetensors" if folder else None
    if path and path.is_file():
        # A damaged file is written again.
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            return np.asarray(load_file(path)["similarity"].double().numpy())
    made = wu_palmer(synsets())
    if path:
        # What cannot be kept is made anew each time.
        with contextlib.suppress(InputError):
            write_whole(path, lambda file: save_file({"similarity": torch.from_numpy(made)}, file))
    return made


def wu_palmer(ids: Sequence[str]) -> Array:
    """Similarity of nouns of WordNet 3.0, float (K, K).

    Args:
        ids: `n01440764` and the like.

    Raises:
        InputError: NLTK or its WordNet are not installed, or it has no such nouns.
    """
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise InputError(f"WordNet similarity needs NLTK: {INSTALL}.") from error
    try:
        nouns = [wordnet.synset_from_pos_and_offset("n", int(one[1:])) for one in ids]
    except UNFIT as error:
        raise InputError(f"Cannot read WordNet 3.0 ({one_line(error, 80)}): {INSTALL}.") from error
    return _similarities(nouns)


def _similarities(nouns: Sequence[Any]) -> Array:
    """For each noun: twice the depth of the lowest common kind, by both depths through it."""
    kinds = sorted({kind for noun in nouns for kind in _above(noun)})
    number = {kind: k for k, kind in enumerate(kinds)}
    steps = np.full((len(kinds), len(kinds)), np.inf)
    for kind, k in number.items():
        for higher, distance in _above(kind).items():
            steps[k, number[higher]] = distance
    least = np.array([kind.min_depth() for kind in kinds])
    most = np.array([kind.max_depth() for kind in kinds])
    places = np.array([number[noun] for noun in nouns])
    found = np.ones((len(nouns), len(nouns)))
    for i, own in enumerate(places):
        # All kinds of a common kind are among these, too.
        above = np.flatnonzero(np.isfinite(steps[own]))
        others = steps[np.ix_(places, above)]
        # Of equally low ones the noun itself counts, then the first by name.
        order = (
            least[above] * 2.0 * len(kinds) - np.arange(len(above)) + len(above) * (above == own)
        )
        chosen = above[np.where(np.isfinite(others), order, -np.inf).argmax(1)]
        beyond = steps[np.ix_(chosen, above)]
        depth = most[chosen] + 1
        ways = (steps[own, above] + beyond).min(1) + (others + beyond).min(1)
        found[i] = 2 * depth / (ways + 2 * depth)
    return found


def _above(noun: Any) -> dict[Any, int]:
    """A noun and all that it is a kind of, with the fewest steps up to there."""
    steps, level, number = {noun: 0}, [noun], 0
    while level:
        number += 1
        higher = [up for one in level for up in one.hypernyms() + one.instance_hypernyms()]
        level = [up for up in dict.fromkeys(higher) if up not in steps]
        steps.update(dict.fromkeys(level, number))
    return steps
