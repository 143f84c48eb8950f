"""One training on the digits world in this process, for benchmarks that look into the model."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import cfmask
from cfmask import Counterfactual, digits
from cfmask.counterfactual import Fill, PatchMask
from cfmask.runs.trainer import Trainer

WEIGHT = 4.0  # of the distance, in units of the mean squared teacher feature


def masked(mask: PatchMask, fill: Fill, of: str = "logit") -> Callable[..., cfmask.Method]:
    """Masked feature distillation with this mask and fill."""
    return partial(
        cfmask.MaskedDistillation,
        counterfactual=Counterfactual(mask, fill),
        relevance_of=of,
        distance="relative_feature",
        distill_weight=WEIGHT,
    )


def tune(
    make: Callable[..., cfmask.Method], seed: int, epochs: int
) -> tuple[float, cfmask.Classifier, cfmask.Classifier]:
    """Tune the tiny CLIP once: best validation accuracy, the model before, and the best after."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    pl.seed_everything(seed, verbose=False)
    start = cfmask.OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    pretrained = cfmask.OpenClipClassifier.from_spec(start.spec)
    pretrained.load_state_dict(start.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/accuracy", mode="max", save_weights_only=True)
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision="auto",
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[best],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(make(start), cfmask.DigitsData(seed=seed))
        tuned = cfmask.load_classifier(best.best_model_path)
        return float(best.best_model_score or 0), pretrained, tuned
