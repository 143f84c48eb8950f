"""Encoders: what a training asks of them beside features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError

# What is compiled: nothing, the encoders, or all that gives the losses.
Compiled = bool | Literal["step"]


def checkpoint_blocks(classifier: Classifier) -> None:
    """Make the encoder compute its blocks again for their gradients.

    Raises:
        InputError: the encoder has no such option.
    """
    encoder: Any = classifier.encoder
    # CLIP's ResNets have the option, and it does nothing; timm's models without it assert.
    able = hasattr(encoder, "set_grad_checkpointing") and not hasattr(encoder, "attnpool")
    try:
        if able:
            encoder.set_grad_checkpointing(True)
    except AssertionError:
        able = False
    if not able:
        raise InputError(
            f"Expected an encoder with gradient checkpointing, but {classifier.name} has none; "
            "leave out grad_checkpointing."
        )


def compile_encoder(classifier: Classifier) -> None:
    """Compile the encoder of whole images; where patches are removed it runs as written."""
    fast = torch.compile(type(classifier).encode)
    # A copy of the classifier gets one of its own, which a closure would not be.
    classifier.encode = partial(_encode, classifier, fast)  # type: ignore[method-assign]


def _encode(
    classifier: Classifier, fast: Callable[..., Tensor], normalised: Tensor, hidden: Tensor | None
) -> Tensor:
    if hidden is None:
        return fast(classifier, normalised, None)
    return type(classifier).encode(classifier, normalised, hidden)
