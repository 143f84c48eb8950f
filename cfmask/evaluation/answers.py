"""Answers: a model's predictions for every image of a set, and which of them are right.

Letters: N images, K classes of the head, C of them that compete, M of them right for a label.
All metrics are computed from answers, so that images are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from cfmask.errors import InputError
from cfmask.shift import UNKNOWN

BEST = 5


@dataclass(frozen=True)
class Answers:
    """A model's answers to the images of a set, in the order of the set.

    Attributes:
        labels: int64 (N,), as the set gives them.
        best: int64 (N, min(5, C)), competing classes by falling logit; (N, 1) where only the
            predicted class is known, and all fields after `readable` are None.
        correct: bool (N,), the first of `best` is right.
        readable: bool (N,); an unreadable image is answered like a black one and is never right.
        top5: bool (N,), one of `best` is right.
        unrestricted: bool (N,), the argmax among all classes of the head is right; None where only
            the logits of the competing classes are known.
        nll: float32 (N,), -log of the probability of all right classes together, in nats.
        confidence: float32 (N,) in [0, 1], probability of the answer; see `LabelRule`.
        max_logit: float32 (N,), among all classes of the head; None likewise.
        logits: float32 (N, C) of the competing classes in the order of the head; None unless kept.
        views: bool or float (N,) by `view/column`: what was measured of views of each image.
    """

    labels: Tensor
    best: Tensor
    correct: Tensor
    readable: Tensor
    top5: Tensor | None = None
    unrestricted: Tensor | None = None
    nll: Tensor | None = None
    confidence: Tensor | None = None
    max_logit: Tensor | None = None
    logits: Tensor | None = None
    views: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> dict[str, Tensor]:
        """The attributes that are not None, by name, and the `views` by theirs."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "views"}
        return {name: value for name, value in found.items() if value is not None} | self.views

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Answers:
        """What has these `tensors`."""
        own = {name: value for name, value in tensors.items() if "/" not in name}
        views = {name: value for name, value in tensors.items() if "/" in name}
        return cls(**own, views=views)

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Answers to the images of several parts of a set, one after the other."""
        # A process without images has seen no views of any.
        columns = [part.tensors() for part in parts if len(part)] or [parts[0].tensors()]
        return cls.of_tensors({name: torch.cat([c[name] for c in columns]) for name in columns[0]})


class LabelRule:
    """Which classes of a head compete on a set, and which of them are right for a label.

    Probabilities are a softmax over the competing classes. If labels have several right classes
    and no class is right for two labels (ObjectNet), the confidence of an answer is the probability
    of all classes of its label; otherwise it is that of the argmax.

    Args:
        heads: number K of classes of the head.
        classes: those that compete; None for all.
        accepts: label -> classes that are right; None where the label itself is. Only of `UNKNOWN`
            none may be.
        name: of the set, for messages.

    Raises:
        InputError: `classes` that the head does not have, or none that is right for a label.
    """

    def __init__(
        self,
        heads: int,
        classes: Sequence[int] | None = None,
        accepts: Mapping[int, Sequence[int]] | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        competing = range(heads) if classes is None else sorted(classes)
        if len(competing) and not 0 <= competing[0] <= competing[-1] < heads:
            raise InputError(
                f"Expected a head that has class {competing[-1]}, but got one of {heads} classes; "
                f"does the set {name} have other classes than the classifier?"
            )
        self.own = accepts is None
        for label, right in (accepts or {}).items():
            if label != UNKNOWN and not set(right) & set(competing):
                raise InputError(
                    f"Expected a class that is right for label {label} of the set {name} among the "
                    f"{len(competing)} that compete, but got {list(right)}."
                )
        accepts = {k: (k,) for k in competing} if accepts is None else accepts
        several = [k for right in accepts.values() for k in right]
        self.disjoint = len(several) == len(set(several))
        self.restricted = len(competing) < heads
        self.classes = torch.tensor(competing, dtype=torch.int64)
        self.known = torch.tensor(sorted(accepts), dtype=torch.int64)
        most = max(map(len, accepts.values()), default=0)
        rows = [[*accepts[k], *[-1] * (most - len(accepts[k]))] for k in self.known.tolist()]
        self.right = torch.tensor(rows, dtype=torch.int64).view(len(rows), most)
        # Classes that are right for the same label, as bool (C, C), where that is not the identity.
        owner = {k: label for label, right in accepts.items() for k in right}
        owners = torch.tensor([owner.get(k, -1 - i) for i, k in enumerate(competing)])
        joint = self.disjoint and most > 1
        self.together = (owners[:, None] == owners).double() if joint else None

    def rows(self, labels: Tensor) -> Tensor:
        """Row of each label in `right`, int64 (N,).

        Raises:
            InputError: a label that is no class of the head, or none of the set.
        """
        rows = torch.searchsorted(self.known, labels).clamp(max=max(0, len(self.known) - 1))
        wrong = labels if not len(self.known) else labels[self.known[rows] != labels]
        if len(wrong):
            owner = "of the head" if self.own else "of the set"
            raise InputError(
                f"Expected labels among the {len(self.known)} classes {owner}, but got "
                f"{int(wrong[0])}; does the set {self.name} have other classes than the classifier?"
            )
        return rows

    def judge(
        self,
        logits: Tensor,
        labels: Tensor,
        readable: Tensor | None = None,
        keep_logits: bool = False,
    ) -> Answers:
        """Answers on the CPU.

        Args:
            logits: float (N, K), on any device.
            labels: int64 (N,).
            readable: bool (N,), False for images that could not be read; None if all could.
            keep_logits: True leaves the logits of the competing classes with the answers.

        Raises:
            InputError: a label that is no class of the head or of the set; logits that are no
                numbers.
        """
        right = self.right[self.rows(labels.cpu())]
        logits = logits.float().cpu()
        seen = torch.ones(len(labels), dtype=torch.bool) if readable is None else readable
        if not logits.isfinite().all():
            raise InputError("Expected finite logits, but the model gave NaN or infinity.")
        competing = logits[:, self.classes] if self.restricted else logits
        # A stable sort: of equal logits the class with the least number wins, on every device.
        order = competing.sort(dim=1, descending=True, stable=True).indices[:, :BEST]
        best = self.classes[order]
        hits = (best[:, :, None] == right[:, None, :]).any(2)
        p = competing.double().softmax(1)
        # The column after the last class stands for the padding -1.
        log_p = torch.full((len(logits), logits.shape[1] + 1), -torch.inf, dtype=torch.float64)
        log_p[:, self.classes] = competing.double().log_softmax(1)
        if self.together is not None:
            p = p @ self.together
        return Answers(
            labels=labels.cpu(),
            best=best,
            correct=hits[:, 0] & seen,
            top5=hits.any(1) & seen,
            unrestricted=(logits.argmax(1)[:, None] == right).any(1) & seen,
            nll=-log_p.gather(1, right % log_p.shape[1]).logsumexp(1).float(),
            confidence=p.gather(1, order[:, :1])[:, 0].clamp(max=1).float(),
            max_logit=logits.amax(1),
            readable=seen,
            logits=competing if keep_logits else None,
        )

    def judge_predictions(self, predicted: Tensor, labels: Tensor) -> Answers:
        """Answers of which only the predicted classes are known.

        Args:
            predicted: int64 (N,), one of the competing classes for each image.
            labels: int64 (N,).

        Raises:
            InputError: a class that does not compete; a label that is none of the set.
        """
        other = predicted[~torch.isin(predicted, self.classes)]
        if len(other):
            raise InputError(
                f"Expected predictions among the {len(self.classes)} classes that compete on "
                f"{self.name}, but got class {int(other[0])}; take the best of these classes."
            )
        correct = (predicted[:, None] == self.right[self.rows(labels)]).any(1)
        return Answers(labels, predicted[:, None], correct, torch.ones_like(correct))
