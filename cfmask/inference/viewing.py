"""Viewing: sets read with the pixels around their crops, and what a model says to views of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.evaluation.answers import Answers, LabelRule
from cfmask.frame import Frame, enlarged, part, plain
from cfmask.images import Preprocess
from cfmask.inference.any_model import AnyModel, Whole
from cfmask.inference.readable import Readable
from cfmask.shift import Shift
from cfmask.views.view import Said, View, checked

# Logits (B, K) and, if the model has them, features (B, D).
Heard = tuple[Tensor, Tensor | None]
# Images float (B, 3, H, W) -> these.
Ask = Callable[[Tensor], Heard]
# Images by which is told whether a set can be read with what lies around its crops.
PROBES = 4


def widened(look: Preprocess, views: Mapping[str, View]) -> Preprocess:
    """The preprocessing with as many pixels around as the views need.

    Raises:
        InputError: the pictures, when they are resized, do not have so many.
    """
    margin = max((view.margin for view in views.values()), default=0)
    if not margin or isinstance(look, Whole):
        return look
    return Frame.around(look, margin, beside=True)


def frame_of(
    shift: Shift,
    look: Preprocess,
    views: Mapping[str, View],
    notes: dict[str, dict[str, list[str]]],
) -> Preprocess:
    """How a set is read for views: by `widened`, or as ever where its images end at the crop.

    A set of images that are stored at the model's size, or changed after they are cropped, has no
    pixels around them: a few images tell, which would come out otherwise. `notes` are those of a
    `Tally`, to which the set is added where it is not read as ever.
    """
    frame = _frame(shift, look, views)
    words = _words(look, frame)
    for name in (name for name in views if words and views[name].margin):
        sets = notes.setdefault(name, {}).setdefault(words, [])
        sets += [shift.name] if shift.name not in sets else []
    return frame


def _frame(shift: Shift, look: Preprocess, views: Mapping[str, View]) -> Preprocess:
    wide = widened(look, views)
    if wide is look:
        return look
    usual = Readable(shift.load(look), look, "wrong")
    # Drawn sets are not cropped, whatever the crop of the model.
    whole = look if isinstance(look, Frame) else replace(look, crop_pct=1.0)
    for start in dict.fromkeys([look, whole]):
        # Sets of stored images refuse another size, and tiny ones leave no room.
        with contextlib.suppress(InputError):
            tried = widened(start, views)
            if _same(usual, Readable(shift.load(tried), tried, "wrong"), look, tried):
                return tried
    return look


def _same(usual: Readable, framed: Readable, look: Preprocess, frame: Preprocess) -> bool:
    """Whether frames hold the images that the usual reading gives."""
    places = {k * (len(usual) - 1) // (PROBES - 1) for k in range(PROBES)} if len(usual) else ()
    for k in places:
        own, wide = usual[k][0], framed[k][0]
        right = tuple(wide.shape) == (3, *frame.size)
        if not right or not torch.equal(own, plain(wide[None], frame, look)[0]):
            return False
    return True


def heard(model: Classifier | AnyModel, parts: Sequence[Tensor], views: bool) -> Heard:
    """What a model says to images in parts, each (B, 3, H, W); features only for views.

    A classifier whose logits are not read from its features alone counts as one without.
    """
    if views and isinstance(model, Classifier) and type(model).forward is Classifier.forward:
        features = [model.features(part) for part in parts]
        return torch.cat([model.classify(own) for own in features]), torch.cat(features)
    return torch.cat([model(part) for part in parts]), None


def _words(look: Preprocess, frame: Preprocess) -> str:
    """How a set is read for a view of more than its crops; empty if that is as ever."""
    if frame.size == look.size:
        return "left out: the images end at the crop"
    if isinstance(look, Frame) or not isinstance(frame, Frame) or not enlarged(frame.base):
        return ""
    return (
        "the crop leaves nothing around it, so that for this alone images are resized to 256/224 "
        "of their usual size before they are cropped"
    )


@dataclass(frozen=True)
class Viewing:
    """What views show of the images of a set, and what is measured of a model's answers.

    Attributes:
        views: by name.
        look: the preprocessing of the model.
        frame: that by which the images are read; see `frame_of`.
        shift: the set.
    """

    views: Mapping[str, View]
    look: Preprocess
    frame: Preprocess
    shift: Shift

    def __call__(
        self,
        answers: Answers,
        said: Heard,
        images: Tensor,
        ask: Ask,
        numbers: Sequence[int],
    ) -> Answers:
        """Answers with the columns of all views.

        Args:
            answers: the ordinary ones to B images.
            said: what `ask` gave for them.
            images: float (B, 3, H', W') in [0, 1], as `frame` reads them.
            ask: the model.
            numbers: of the images in the set.
        """
        if not self.views:
            return answers
        usual = plain(images, self.frame, self.look)
        own = self._said(said, answers)
        found: dict[str, Tensor] = {}
        for name, view in self.views.items():
            if view.margin and self.frame.size == self.look.size:
                continue
            shown = self._around(images, view.margin) if view.margin else usual
            versions = [
                # The middle of a frame is most often the image itself.
                own if torch.equal(version, usual) else self._said(ask(version), answers)
                for version in view.versions(shown, numbers)
            ]
            found |= checked(name, view, view.measure(own, versions), len(images))
        return replace(answers, views=found)

    def _around(self, images: Tensor, margin: int) -> Tensor:
        assert isinstance(self.frame, Frame)
        inner = self.look.margin if isinstance(self.look, Frame) else 0
        return part(images, self.frame, inner + margin)

    def _said(self, said: Heard, answers: Answers) -> Said:
        logits, features = said
        rule = LabelRule(logits.shape[1], self.shift.classes, self.shift.accepts, self.shift.name)
        judged = rule.judge(logits, answers.labels, answers.readable, True)
        assert judged.logits is not None
        shown = None if features is None else features.cpu()
        return Said(judged.best[:, 0], judged.correct, judged.logits, shown)
