"""Described: a classifier with a zero-shot head from descriptions in the place of its own.

Letters: K classes, D feature width, n_k descriptors of class k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.descriptions import described_weight, descriptor_features, read_descriptions
from cfmask.errors import InputError
from cfmask.families.openclip import OpenClipClassifier
from cfmask.families.pretrained import logit_bias
from cfmask.heads import ZeroShotHead
from cfmask.text import TextTower, Tokenizer

# In place of a file: the descriptions that the model was trained with.
OWN = "own"


def has_text(classifier: Classifier) -> bool:
    """Whether its class knows the text tower of its pretraining, and reads a head by features."""
    kind = type(classifier)
    return kind.text_tower is not Classifier.text_tower and kind.forward is Classifier.forward


def untouched_text(classifier: Classifier, trust: bool) -> tuple[TextTower, Tokenizer]:
    """The text tower of the pretraining, also of a classifier that comes from a file."""
    if isinstance(classifier, OpenClipClassifier):
        return classifier.pretrained_text_tower(trust)
    return classifier.text_tower()


def described(
    classifier: Classifier, source: str | Path, normalise: bool = True, trust: bool = False
) -> Classifier:
    """The classifier with a head from descriptions; it shares the encoder with the one given.

    Args:
        classifier: of a class with a text tower.
        source: JSON file {class: [descriptor, …]}, or `digits`.
        normalise: see `cfmask.descriptions.described_weight`.
        trust: see `OpenClipClassifier.pretrained_text_tower`.

    Raises:
        InputError: see `read_descriptions` and `OpenClipClassifier.pretrained_text_tower`.
    """
    texts = read_descriptions(source, classifier.class_names)
    text, tokenizer = untouched_text(classifier, trust)
    weight = described_weight(text.clip, tokenizer, texts, normalise)
    options = {"templates": [], "descriptions": texts, "normalise": normalise}
    spec = replace(
        classifier.spec,
        head="zero_shot",
        head_from=None,
        options={**classifier.spec.options, **options},
    )
    return classifier.with_head(ZeroShotHead(weight, logit_bias(text.clip)), spec).eval()


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of the classes as a text tower reads them.

    Attributes:
        texts: n_k descriptors of each class, by its name.
        features: of the sentences, unit float (n_k, D), by class.
    """

    texts: Mapping[str, Sequence[str]]
    features: Mapping[str, Tensor]

    @classmethod
    def of(cls, classifier: Classifier, trust: bool = False) -> Descriptors:
        """Those that the head of a classifier was made from.

        Raises:
            InputError: it was made otherwise; see `described`.
        """
        texts = classifier.spec.options.get("descriptions")
        if not texts:
            raise InputError(
                f"Expected a model trained with descriptions for --descriptions {OWN}, but "
                f"{classifier.name} was not; give a JSON file {{class: [descriptor, …]}}."
            )
        text, tokenizer = untouched_text(classifier, trust)
        return cls(texts, descriptor_features(text.clip, tokenizer, texts))

    def explain(self, features: Tensor, class_name: str) -> list[tuple[str, float]]:
        """Descriptors of a class with the cosine of their sentences to an image's features (D,).

        The highest comes first. Their mean is the logit of a head of means that are not
        normalised, without its scale.
        """
        cosines = self.features[class_name] @ F.normalize(features.cpu(), dim=0)
        order = torch.argsort(cosines, descending=True, stable=True).tolist()
        return [(self.texts[class_name][k], float(cosines[k])) for k in order]
