"""Groups: figures of the groups of a set's images, each with its 95 % interval.

Groups are taken as independent: their binomial variances add, and the interval is the normal one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfmask.evaluation.estimates import combined
from cfmask.shift import Shift

# Counts of the groups that have images, see `cfmask.evaluation.measures.counts_of`.
Groups = Mapping[str, Sequence[Any]]
# Value, low and high as fractions, and a note.
Figure = tuple[float, float, float, str]


def group_mean(groups: Groups, shift: Shift) -> Figure:
    """Unweighted mean of the groups' accuracies, in [0, 1]."""
    pairs = _pairs(groups)
    return *combined(pairs, [1 / len(pairs)] * len(pairs)), ""


def disparity(groups: Groups, shift: Shift) -> Figure | None:
    """Accuracy of the best group minus that of the worst, in [0, 1], with the names of both.

    Of equal groups they are the first. None for fewer than two groups. The interval is not
    corrected for the groups having been picked by their figures.

    Source: arXiv 2307.13136, where the groups are regions of the world.
    """
    pairs, names = _pairs(groups), groups["names"]
    if len(pairs) < 2:
        return None
    shares = [correct / total for correct, total in pairs]
    best, worst = (shares.index(end(shares)) for end in (max, min))
    found = combined([pairs[best], pairs[worst]], [1.0, -1.0])
    return *found, f"{names[best]} − {names[worst]}"


def training_mean(groups: Groups, shift: Shift) -> Figure | None:
    """Sum of the groups' accuracies by their shares of the training images, in [0, 1].

    That is the accuracy to expect in distribution, of a set whose groups are balanced. None where
    the shares are not known, or where a group of training has no images here.

    Source: "I.D. Acc" of Whac-A-Mole (Li et al. 2023); the adjusted accuracy of Waterbirds (Sagawa
    et al. 2020).
    """
    weights = _training_shares(groups, shift)
    return (*combined(_pairs(groups), weights), "") if weights else None


def shortcut_gap(groups: Groups, shift: Shift, shortcut: str) -> Figure | None:
    """Accuracy without a shortcut minus `training_mean`, in [-1, 1]: negative for who relies on it.

    The former is the mean of the groups whose `Shift.absent` is just this shortcut; None if there
    are none, and where `training_mean` is None.

    Source: "BG", "CoObj" and "BG+CoObj gap" of Whac-A-Mole (Li et al. 2023), with the sign of the
    released code.
    """
    absent = dict(zip(shift.group_names, shift.absent))
    weights = _training_shares(groups, shift)
    lacking = [absent.get(name) == shortcut for name in groups["names"]]
    if not weights or not any(lacking):
        return None
    mean = 1 / sum(lacking)
    weights = [mean * lacks - weight for lacks, weight in zip(lacking, weights)]
    return *combined(_pairs(groups), weights), ""


def _pairs(groups: Groups) -> list[tuple[int, int]]:
    return list(zip(groups["correct"], groups["total"]))


def _training_shares(groups: Groups, shift: Shift) -> list[float]:
    """Share of each group that has images; none where they are not known of all of training."""
    shares = dict(zip(shift.group_names, shift.training_shares))
    here = [shares.get(name, 0.0) for name in groups["names"]]
    return here if abs(sum(here) - 1) < 1e-6 else []
