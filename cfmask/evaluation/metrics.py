"""Metrics: what is measured of a model's answers to a set, and how it is shown.

A metric is one function and its entry in `METRICS`. Letters: N images, C classes that compete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from cfmask.evaluation import groups
from cfmask.evaluation.answers import BEST, Answers
from cfmask.evaluation.estimates import (
    combined,
    expected_calibration_error,
    interval,
    mean_with_interval,
    selective,
)
from cfmask.evaluation.novelty import Figure, auroc, average_precision, fpr, oscr
from cfmask.shift import Shift

Counts = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Judged:
    """What a metric is computed from: a model's answers to a set.

    Attributes:
        answers: to the N images of the set; `answers.logits` is float (N, C) for a metric that
            needs logits, else None. Without logits all scores are None, see `Answers`.
        shift: the set.
        counts: of its classes, groups and bins of confidence; see `cfmask.evaluation.measures`.
        heads: number of classes of the head.
        reference: answers of the same model to the reference set; None without one, and for sets in
            distribution.
    """

    answers: Answers
    shift: Shift
    counts: Counts
    heads: int
    reference: Answers | None = None


@dataclass(frozen=True)
class Value:
    """A figure with what is known of it.

    Attributes:
        value: as a fraction, or in the metric's own unit.
        low: lower end of the 95 % interval; None for a metric without one.
        high: upper end of it.
        correct: number of images classified right; None where the figure is no share of images.
        total: number of images; None likewise.
        note: such as the name of the worst class.
    """

    value: float
    low: float | None = None
    high: float | None = None
    correct: int | None = None
    total: int | None = None
    note: str = ""

    @classmethod
    def share(cls, correct: int, total: int, note: str = "") -> Value:
        """Share of images classified right, with its Clopper-Pearson interval."""
        return cls(correct / total, *interval(correct, total), correct, total, note)

    @classmethod
    def between(cls, value: float, low: float, high: float) -> Value:
        """A figure with its interval, or without if one end is not finite."""
        return cls(value, low, high) if math.isfinite(low + high) else cls(value)


@dataclass(frozen=True)
class Metric:
    """What is measured of a model on a set, and how it is shown.

    Attributes:
        title: in words.
        of: computes the figure, as a number or with its interval; it returns None if a set has
            none. The attribute is None for metrics that are computed from others.
        meaning: a clause without a full stop, for the reader.
        unit: of the figure as it is shown; empty for none.
        scale: by which a value is multiplied to be shown; 100 for per cent.
        digits: after the decimal point.
        better: 1 if more is better, -1 if less is, 0 if neither.
        signed: True shows a plus before gains.
        needs_logits: True keeps the logits of all images for `of`, N · C floats; a model without
            logits has no figure then.
        unlabelled: True for a figure that needs no right class, so that sets of unknown classes
            have it too.

    Examples:
        >>> def third(judged):
        ...     return (judged.answers.best[:, 0] == 3).float().mean()
        >>> metric = cfmask.Metric("Answers that are class 3", third, better=0)
        >>> metric.heading, metric.text(0.25)
        ('Answers that are class 3, %', '25.0')
    """

    title: str
    of: Callable[[Judged], Value | float | None] | None = None
    meaning: str = ""
    unit: str = "%"
    scale: float = 100
    digits: int = 1
    better: int = 1
    signed: bool = False
    needs_logits: bool = False
    unlabelled: bool = False

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def text(self, value: float) -> str:
        """A value, scaled and rounded, with a true minus sign."""
        sign = "+" if self.signed else ""
        shown = f"{self.scale * value:{sign}.{self.digits}f}"
        zero = re.fullmatch(r"-0\.?0*", shown)
        return sign + shown[1:] if zero else shown.replace("-", "−")

    def described(self) -> dict[str, Any]:
        """All but the function, as a report keeps it."""
        kept = ("title", "meaning", "unit", "scale", "digits", "better", "signed")
        return {name: getattr(self, name) for name in kept}


def _share(right: Tensor | None) -> Value | None:
    """Share of True in bool (N,)."""
    return None if right is None else Value.share(int(right.sum()), len(right))


def _accuracy_unrestricted(judged: Judged) -> Value | None:
    return None if judged.shift.classes is None else _share(judged.answers.unrestricted)


def _top5(judged: Judged) -> Value | None:
    """None for a set of at most five classes, where the figure is always 1."""
    classes = judged.shift.classes
    competing = judged.heads if classes is None else len(classes)
    return _share(judged.answers.top5) if competing > BEST else None


def _class_mean(judged: Judged) -> Value | None:
    if "classes" not in judged.counts:
        return None
    classes = judged.counts["classes"]
    pairs = list(zip(classes["correct"], classes["total"]))
    return Value.between(*combined(pairs, [1 / len(pairs)] * len(pairs)))


def _worst(judged: Judged, kind: str) -> Value | None:
    """The lowest share; of equal ones the first."""
    if kind not in judged.counts:
        return None
    counts = judged.counts[kind]
    triples = zip(counts["correct"], counts["total"], counts["names"])
    return Value.share(*min(triples, key=lambda triple: triple[0] / triple[1]))


def _of_groups(judged: Judged, measure: Callable[..., groups.Figure | None]) -> Value | None:
    counts = judged.counts.get("groups")
    found = measure(counts, judged.shift) if counts else None
    return found and Value(*found[:3], note=found[3])


def _shortcut(shortcut: str, without: str) -> Metric:
    meaning = f"accuracy {without} minus the accuracy by the groups' shares of training"
    of = partial(_of_groups, measure=partial(groups.shortcut_gap, shortcut=shortcut))
    return Metric(f"Gap without {shortcut}", of, meaning, unit="points", signed=True)


def _nll(judged: Judged) -> Value | None:
    nll = judged.answers.nll
    return None if nll is None else Value.between(*mean_with_interval(nll))


def _ece(judged: Judged) -> float | None:
    bins = judged.counts.get("bins")
    return expected_calibration_error(bins) if bins else None


def _selective_accuracy(judged: Judged) -> Value | None:
    confidence, correct = judged.answers.confidence, judged.answers.correct
    return None if confidence is None else Value.share(*selective(confidence, correct))


def _apart(
    score: str, of: Callable[..., Figure], unknown: bool = True, correct: bool = False
) -> Callable[[Judged], Value | None]:
    """How well a score of the answers tells the images of a set from those of the reference.

    Args:
        score: name of a column of the answers.
        of: see `cfmask.evaluation.novelty`.
        unknown: of sets of unknown classes alone.
        correct: `of` takes which answers to the reference are right.
    """

    def figure(judged: Judged) -> Value | None:
        inside, outside = judged.reference, getattr(judged.answers, score)
        known = getattr(inside, score, None)
        if inside is None or known is None or outside is None or unknown > judged.shift.unknown:
            return None
        return Value.between(*of(known, outside, *[inside.correct] * correct))

    return figure


def _apart_metrics(score: str, words: str) -> dict[str, Metric]:
    """How well a score tells unknown classes from the reference, by names that end in its own."""
    name = "max_logit" if score == "max_logit" else "softmax"
    return {
        f"auroc_{name}": Metric(
            f"AUROC of the {words} against the reference",
            _apart(score, auroc, unknown=score != "max_logit"),
            f"probability that an image of the reference set has a higher {words}",
            unlabelled=True,
        ),
        f"fpr95_{name}": Metric(
            f"FPR95 by the {words}",
            _apart(score, fpr),
            f"share of unknown images whose {words} reaches what 95 % of the reference set reach",
            better=-1,
            unlabelled=True,
        ),
        f"aupr_{name}": Metric(
            f"AUPR by the {words}, unknown positive",
            _apart(score, average_precision),
            f"average precision in finding the unknown images by a low {words}",
            unlabelled=True,
        ),
        f"oscr_{name}": Metric(
            f"OSCR by the {words}",
            _apart(score, oscr, correct=True),
            f"probability that a reference image is answered right with a higher {words} than an "
            "unknown one",
            unlabelled=True,
        ),
    }


def _effective_robustness(transform: str) -> Metric:
    """Accuracy above a line; `cfmask.evaluation.robustness` computes it from accuracies."""
    meaning = f"accuracy above that of the {transform} fit"
    title = f"Effective robustness ({transform})"
    return Metric(title, None, meaning, unit="points", signed=True)


# Metrics by name, in the order in which they are shown. A new one is one entry.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(
        "Top-1 accuracy",
        lambda judged: _share(judged.answers.correct),
        "top-1 accuracy among the classes of the set",
    ),
    "accuracy_unrestricted": Metric(
        "Top-1 accuracy among all classes of the head",
        _accuracy_unrestricted,
        "top-1 accuracy among all classes of the head",
    ),
    "top5": Metric("Top-5 accuracy", _top5, "top-5 accuracy among the classes of the set"),
    "class_mean": Metric(
        "Mean of the classes' accuracies",
        _class_mean,
        "unweighted mean of the accuracies of the classes",
    ),
    "worst_class": Metric(
        "Accuracy of the worst class",
        lambda judged: _worst(judged, "classes"),
        "accuracy of the class with the lowest one",
    ),
    "worst_group": Metric(
        "Accuracy of the worst group",
        lambda judged: _worst(judged, "groups"),
        "accuracy of the group of images with the lowest one",
    ),
    "group_mean": Metric(
        "Mean of the groups' accuracies",
        partial(_of_groups, measure=groups.group_mean),
        "unweighted mean of the accuracies of the groups of images",
    ),
    "disparity": Metric(
        "Disparity between groups",
        partial(_of_groups, measure=groups.disparity),
        "accuracy of the best group of images minus that of the worst",
        unit="points",
        better=-1,
    ),
    "id_accuracy": Metric(
        "Accuracy by the groups' shares of training",
        partial(_of_groups, measure=groups.training_mean),
        "sum of the groups' accuracies, each weighted by its share of the training images",
    ),
    "bg_gap": _shortcut("BG", "where the background alone misleads"),
    "co_obj_gap": _shortcut("CoObj", "where the co-occurring object alone misleads"),
    "bg_co_obj_gap": _shortcut("BG+CoObj", "where background and co-occurring object mislead"),
    "nll": Metric(
        "Negative log-likelihood",
        _nll,
        "mean of −log of the probability of the right classes",
        unit="nats",
        scale=1,
        digits=3,
        better=-1,
    ),
    "ece": Metric(
        "Expected calibration error",
        _ece,
        "expected calibration error, 15 equal-width bins over the whole set",
        better=-1,
    ),
    "selective_accuracy": Metric(
        "Accuracy on the most confident 90 %",
        _selective_accuracy,
        "accuracy on the 90 % of images with the highest confidence",
    ),
    **_apart_metrics("max_logit", "maximum logit"),
    **_apart_metrics("confidence", "maximum softmax"),
    "scale_drop": Metric(
        "Accuracy drop over scales",
        None,
        "accuracy at scale 0 minus that at a scale, mean over all scales above 0",
        unit="points",
        better=-1,
        signed=True,
    ),
    "last_drop": Metric(
        "Accuracy drop at the largest scale",
        None,
        "accuracy at scale 0 minus that at the largest scale",
        unit="points",
        better=-1,
        signed=True,
    ),
    "failure_point": Metric(
        "Failure point, mean",
        None,
        "smallest scale at which a trajectory is answered wrong, mean over trajectories; one that "
        "never is counts as the scale after the largest",
        unit="scale",
        scale=1,
        digits=2,
    ),
    "failure_sd": Metric(
        "Failure point, standard deviation",
        None,
        "standard deviation of the failure points, with n − 1",
        unit="scale",
        scale=1,
        digits=2,
        better=0,
    ),
    "failure_max": Metric(
        "Failure point, largest",
        None,
        "largest failure point",
        unit="scale",
        scale=1,
        digits=2,
    ),
    "never_wrong": Metric(
        "Trajectories that are never answered wrong",
        None,
        "share of trajectories that are answered right at every scale",
    ),
    "task_accuracy": Metric(
        "Zero-shot accuracy on other tasks",
        None,
        "top-1 accuracy on a task of other classes, by their names and the untouched text tower",
    ),
    "task_change": Metric(
        "Change of zero-shot accuracy on other tasks",
        None,
        "accuracy on a task minus that of the starting point on the same images",
        unit="points",
        signed=True,
    ),
    "effective_robustness_logit": _effective_robustness("logit"),
    "effective_robustness_probit": _effective_robustness("probit"),
}


def described(name: str, protocol: Mapping[str, Any]) -> Metric:
    """How a metric is shown: by `METRICS`, else by the report's protocol, else unscaled."""
    own = METRICS.get(name) or protocol.get("metrics", {}).get(name)
    own = Metric(**own) if isinstance(own, dict) else own
    return own if isinstance(own, Metric) else Metric(name, None, "", "", 1, 3, 0)
