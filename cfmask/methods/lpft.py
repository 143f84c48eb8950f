"""Linear probing, then fine-tuning."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from typing_extensions import Unpack

from cfmask.classifier import Classifier
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.recipe import Recipe


class LPFT(FineTuning):
    """Plain fine-tuning from a linear head that is first fitted to the frozen encoder's features.

    The head that the classifier brings, from text or from pretrained weights, gives way to that
    one: the claim of the source is about a head that is fitted, and one from text hardly moves when
    it is probed. What papers on CLIP call LP-FT is either. The starting point in the report is the
    probed model.

    Args:
        classifier: see `Method`. Its head is replaced by a linear one, which `cfmask train` fits
            before the first step; without it, call `probe`.
        **recipe: see `Method`.

    Source: Kumar et al. 2022 (arXiv 2202.10054). The regression is that of `Method.probe`, one
    strength of regularisation instead of a sweep; its second stage is SGD, here AdamW.
    """

    def __init__(self, classifier: Classifier, **recipe: Unpack[Recipe]) -> None:
        spec = classifier.spec
        classifier.head = nn.Linear(spec.width, len(spec.class_names))
        classifier.spec = replace(spec, head="linear", head_from="chance")
        super().__init__(classifier, **recipe)
