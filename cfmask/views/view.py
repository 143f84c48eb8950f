"""View: further versions of each image of a set, and what is measured of the answers to them.

Letters: B images, C classes that compete, D feature width, m pixels around the crop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from cfmask.errors import InputError
from cfmask.evaluation.estimates import mean_with_interval
from cfmask.evaluation.metrics import Judged, Metric, Value


@dataclass(frozen=True)
class Said:
    """What a model says to one version of B images, on the CPU.

    Attributes:
        predicted: int64 (B,), the class of the argmax among those that compete on the set.
        correct: bool (B,), it is right.
        logits: float32 (B, C), of the competing classes.
        features: float (B, D), not normalised; None of a model without a feature function.
    """

    predicted: Tensor
    correct: Tensor
    logits: Tensor
    features: Tensor | None = None


class View(ABC):
    """Further versions of each image, shown to a model in the pass that reads the set.

    Attributes:
        margin: m, pixels around the crop that it takes; with 0 it sees the crop alone.
        columns: what it measures of every image, by name, each a `Metric` without `of`: the figure
            is the mean over the images, in the metric's own unit.
        places: numbers along which the columns are a curve; empty if they are no curve.
        across: what these numbers are.
    """

    margin: int = 0
    columns: Mapping[str, Metric]
    places: Sequence[float] = ()
    across: str = ""

    @abstractmethod
    def versions(self, images: Tensor, numbers: Sequence[int]) -> Iterable[Tensor]:
        """The versions to show, each float (B, 3, H, W) in the range of the images.

        Args:
            images: float (B, 3, H + 2m, W + 2m) in [0, 1].
            numbers: of the images in their set, for what is drawn at random: so it does not depend
                on batches and processes.
        """

    @abstractmethod
    def measure(self, plain: Said, versions: Sequence[Said]) -> Mapping[str, Tensor]:
        """Figures of every image: bool (B,) or float (B,) by name of the column.

        A column that a model cannot have (of features, where it has none) is left out.

        Args:
            plain: the ordinary answers.
            versions: answers to the versions, in their order.
        """

    def described(self, name: str) -> dict[str, Any]:
        """What a report keeps of it under a name."""
        columns = [f"{name}/{column}" for column in self.columns]
        return {"columns": columns, "places": list(self.places), "across": self.across}


def metrics_of(views: Mapping[str, View]) -> dict[str, Metric]:
    """A metric of each column, by the names of the view and of the column: `view/column`."""
    return {
        f"{name}/{column}": replace(metric, of=partial(_mean, f"{name}/{column}", metric))
        for name, view in views.items()
        for column, metric in view.columns.items()
    }


def _mean(name: str, metric: Metric, judged: Judged) -> Value | None:
    """Mean of a column over the images that could be read."""
    column = judged.answers.views.get(name)
    values = None if column is None else column[judged.answers.readable]
    if values is None or not len(values):
        return None
    if not values.is_floating_point():
        return Value.share(int(values.sum()), len(values))
    if metric.unit == "%":
        return _mean_share(values)
    return Value.between(*mean_with_interval(values))


def _mean_share(values: Tensor) -> Value:
    """Mean of values in [0, 1] with the interval of a share of images, which is wide enough.

    No values in [0, 1] vary more than those of 0 and 1; the interval is Clopper and Pearson's for
    so many images and the sum of the values.
    """
    from scipy.stats import beta

    total, count = float(values.double().sum()), len(values)
    low = float(beta.ppf(0.025, total, count - total + 1)) if total > 0 else 0.0
    high = float(beta.ppf(0.975, total + 1, count - total)) if total < count else 1.0
    return Value(total / count, low, high)


def checked(name: str, view: View, found: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The columns of a view by their full names.

    Raises:
        InputError: a column that the view does not announce, of another shape or type, or with
            values that are no numbers.
    """
    for column, values in found.items():
        right = isinstance(values, Tensor) and values.shape == (count,)
        kind = right and (str(values.dtype) == "torch.bool" or values.is_floating_point())
        if column not in view.columns or not kind or not values.isfinite().all():
            what = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else values
            raise InputError(
                f"Expected the view {name} to give bool or finite float ({count},) under "
                f"{', '.join(view.columns)}, but got {what!s:.60} under {column}."
            )
    return {f"{name}/{column}": values for column, values in found.items()}
