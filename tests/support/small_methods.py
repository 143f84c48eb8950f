"""Methods on the tiny CLIP, and their passes counted."""

from __future__ import annotations

from cfmask import Counterfactual, MaskedDistillation, ObjectMask, SingleFill


def build(kind, classifier, **options):
    """A method with what it needs beside the classifier."""
    if kind is MaskedDistillation:
        options.setdefault("counterfactual", Counterfactual(ObjectMask(0.3), SingleFill()))
    return kind(classifier, **options)


def count_passes(classifier):
    """List that grows by the batch size at each forward pass of the encoder."""
    passes = []
    classifier.encoder.conv1.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    return passes
