"""Methods on the tiny CLIP, and their passes counted."""

from __future__ import annotations

import pytorch_lightning as pl

from cfmask import Counterfactual, DigitsData, MaskedDistillation, ObjectMask, SingleFill


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


def fit(method, tmp_path, steps=3, **options):
    """The trainer of so many steps on eight digits each."""
    data = DigitsData(train_images=40, val_images=20, batch_size=8, seed=0)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(method, data)
    return trainer
