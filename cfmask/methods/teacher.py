"""Teacher: the frozen model that a student is held to."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.heads import HEAD_ORIGINS


def frozen_copy(classifier: Classifier) -> Classifier:
    """A copy in eval mode whose parameters get no gradient."""
    return copy.deepcopy(classifier).eval().requires_grad_(False)


def same_encoder(one: Classifier, other: Classifier) -> bool:
    """Whether the features of two classifiers come from one architecture."""
    shapes = [{n: v.shape for n, v in c.encoder.state_dict().items()} for c in (one, other)]
    return one.spec.class_path == other.spec.class_path and shapes[0] == shapes[1]


def check_teacher(teacher: Classifier, student: Classifier, logits: bool) -> None:
    """Refuse a model that cannot teach another.

    Args:
        teacher: the one.
        student: the other.
        logits: whether the teacher's logits are used.

    Raises:
        InputError: not a classifier, other images, or logits that do not mean the same.
    """
    if not isinstance(teacher, Classifier):
        raise InputError(f"Expected a teacher by its class, but got {teacher!r:.80}.")
    if teacher.image_size != student.image_size:
        raise InputError(
            f"Expected a teacher of images of {student.image_size} px, as {student.name} takes, "
            f"but {teacher.name} takes {teacher.image_size}; give one of them the image_size of "
            "the other."
        )
    if logits and (
        teacher.head_from == "chance" or len(teacher.class_names) != len(student.class_names)
    ):
        raise InputError(
            f"Expected a teacher that knows these {len(student.class_names)} classes for distance: "
            f"logit, but the head of {teacher.name} knows {len(teacher.class_names)} and is "
            f"{HEAD_ORIGINS[teacher.head_from]}; use distance: relative_feature."
        )


def to_bf16(teacher: Classifier) -> None:
    """Weights of matrix products in bfloat16, as autocast would take them at each step anew."""
    for module in teacher.encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            module.to(torch.bfloat16)


def equal_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same names and the same values."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
