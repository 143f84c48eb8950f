"""WiSE-FT: classifiers between two, evaluated with the memory of one more.

Source: Wortsman et al. 2022 (arXiv 2109.01903).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cfmask.checkpoint import interpolate
from cfmask.classifier import Classifier
from cfmask.errors import InputError


class WeightLine:
    """The classifiers whose weights lie on the line between two.

    Args:
        start: the starting point of the tuning.
        tuned: a classifier of the same architecture.

    Raises:
        InputError: two architectures.
    """

    def __init__(self, start: Classifier, tuned: Classifier) -> None:
        self.start = start
        self.tuned = tuned
        self.between = interpolate(start, tuned, 1)
        self.alpha = 1.0

    @torch.no_grad()
    def at(self, alpha: float) -> Classifier:
        """The classifier at an alpha in [0, 1], with exactly the weights of `interpolate`.

        It is one object, whose weights the next call changes.
        """
        if alpha != self.alpha:
            old, new = self.start.state_dict(), self.tuned.state_dict()
            for name, value in self.between.state_dict().items():
                if value.is_floating_point():
                    torch.lerp(old[name], new[name], alpha, out=value)
            self.alpha = alpha
        return self.between


@dataclass(frozen=True)
class Blend:
    """One point of a line.

    Attributes:
        line: where it lies.
        alpha: weight of the tuned classifier, in [0, 1].
    """

    line: WeightLine
    alpha: float

    def classifier(self) -> Classifier:
        """The classifier; see `WeightLine.at`."""
        return self.line.at(self.alpha)


def alphas_of(text: str | Sequence[float]) -> list[float]:
    """Alphas as numbers.

    Args:
        text: numbers, or a text such as `0.5`, `0,0.5,1` or `0,0.1,...,1`, with dots for equal
            steps. An empty text is none.

    Raises:
        InputError: no numbers, numbers outside [0, 1], or steps that do not reach the end.
    """
    if not isinstance(text, str):
        text = ",".join(map(str, text))
    words = [word.strip() for word in text.strip("[] ").split(",") if word.strip()]
    try:
        if "..." in words:
            words = _filled(words)
        alphas = sorted({float(word) for word in words})
    except ValueError as error:
        raise InputError(
            f"Expected alphas such as 0.5 or 0,0.1,...,1, but got {text!r}: {error}."
        ) from error
    if alphas and not 0 <= alphas[0] <= alphas[-1] <= 1:
        raise InputError(f"Expected alphas in [0, 1], but got {text!r}.")
    return alphas


def _filled(words: Sequence[str]) -> list[str]:
    """Words with the dots replaced by their numbers."""
    dots = words.index("...")
    if dots < 2 or dots != len(words) - 2:
        raise ValueError("the dots stand between two numbers or more and the last one")
    first, second, end = (float(words[i]) for i in (dots - 2, dots - 1, dots + 1))
    step = second - first
    count = round((end - second) / step) if step > 0 else -1
    if count < 0 or abs(second + count * step - end) > 1e-9:
        raise ValueError(f"steps of {step:g} from {second:g} do not meet {end:g}")
    return [*words[:dots], *(f"{second + i * step:.10g}" for i in range(1, count + 1))]
