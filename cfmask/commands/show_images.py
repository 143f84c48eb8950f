"""Show: what masks and fills do to one's own pictures, with any classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.commands.own_pictures import png, read_pictures
from cfmask.commands.parser import command
from cfmask.comparison.sources import Labels, is_run, one_classifier
from cfmask.counterfactual import Counterfactual, Fill, ObjectMask, PatchMask, SingleFill
from cfmask.errors import InputError, check_seed
from cfmask.heads import PROMPT
from cfmask.images import to_unit
from cfmask.labels import labels_for
from cfmask.relevance import Relevance, default_relevance
from cfmask.reporting.sheet import draw
from cfmask.runs.gallery import columns
from cfmask.runs.parts import Masking, masking_of, training_data_of
from cfmask.runs.run_folder import RunFolder
from cfmask.terminal import say

DONORS = 15


def show(
    images: list[str],
    label: list[str],
    checkpoint: str = "open_clip:ViT-B-32-quickgelu/openai",
    classifier: Classifier | None = None,
    class_names: list[str] | None = None,
    relevance: Relevance | None = None,
    mask: PatchMask | None = None,
    fill: Fill | None = None,
    out: str = "show.png",
    seed: int = 0,
    trust: bool = False,
) -> Path:
    """Draw image, relevance, mask and counterfactual of pictures.

    Args:
        images: picture files.
        label: name of the true class, one for all pictures or one each.
        checkpoint: run folder, .safetensors or .ckpt file, `open_clip:NAME/TAG` or `timm:NAME`.
        classifier: a classifier by its class path, in place of a checkpoint.
        class_names: classes of a zero-shot head that is made from text; the labels by default.
        relevance: method that scores patches for the class; a run's own by default, else attention
            relevance for transformers and Grad-CAM for CNNs.
        mask: what chooses the patches; a run's own by default, else `ObjectMask`.
        fill: what replaces them; a run's own by default, else `SingleFill`. It takes from the other
            pictures and from training images of the run.
        out: PNG file to write.
        seed: seed of the random choices in masks and fills.
        trust: import the classes that a checkpoint names, and fetch the data that it names by URL.

    Returns:
        The file.

    Raises:
        InputError: a missing or unreadable picture or checkpoint, a label that is no class, a
            single picture and a refill without a run to take from, a file that cannot be written.
    """
    check_seed(seed)
    drawn = png(out, images)
    if not all(name.strip() for name in [*label, *(class_names or [])]):
        raise InputError("Expected names of classes, but got an empty one; see --label.")
    names = Labels(tuple(class_names or sorted(set(label))), PROMPT)
    model = (classifier or one_classifier(checkpoint, names, trust)).eval()
    labels = torch.tensor(labels_for(label, len(images), model.class_names))
    batch = to_unit(read_pictures(images, model.preprocess))
    run = RunFolder(checkpoint) if classifier is None and is_run(checkpoint) else None
    own = masking_of(run, trust) if run else Masking()
    made = [
        Counterfactual(mask or make.mask, fill or make.fill)
        for make in own.counterfactuals or [Counterfactual(ObjectMask(), SingleFill())]
    ]
    explain = relevance or own.relevance or default_relevance(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        donors = _donors(run, model, len(images), made, trust)
        found = columns(model, explain, made, batch, labels, donors)
    draw(drawn, found, _answers(model, batch, labels))
    return drawn


def _donors(
    run: RunFolder | None,
    model: Classifier,
    images: int,
    made: Sequence[Counterfactual],
    trust: bool,
) -> Tensor | None:
    """Training images float (M, 3, H, W) of the run for refills; None if they are not wanted."""
    if not any(make.fill.needs_donors for make in made):
        return None
    if run is not None:
        return _training_images(run, model, trust)
    if images < 2:
        raise InputError(
            "Expected a second picture to take patches from, but got one; give another, a run "
            "folder as --checkpoint, or --fill ConstantFill."
        )
    return None


def _training_images(run: RunFolder, model: Classifier, trust: bool) -> Tensor:
    """Some training images of a run, drawn at random."""
    data = training_data_of(run, trust)
    data.prepare(model.preprocess)
    samples: Any = data.train_set
    chosen = torch.randperm(len(samples))[:DONORS].tolist()
    return to_unit(torch.stack([samples[index][0] for index in chosen]))


@torch.no_grad()
def _answers(model: Classifier, images: Tensor, labels: Tensor) -> list[str]:
    """Name of each true class with its probability, and the likeliest if it is another."""
    shares = model(images).softmax(1)
    return [_answer(share, k, model.class_names) for share, k in zip(shares, labels.tolist())]


def _answer(share: Tensor, label: int, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[label]
    best = int(share.argmax())
    shown = [label] if best == label else [label, best]
    return "\nseen as ".join(f"{names[k]} {100 * share[k]:.0f} %" for k in shown)


def show_images(args: Sequence[str]) -> None:
    """Draw one's own pictures: the whole of ``cfmask show``.

    Args:
        args: command line without the program.
    """
    with command("cfmask show", show.__doc__, classes=True) as parser:
        parser.add_argument("images", type=str, nargs="+", help="picture files")
        parser.add_argument(
            "--label",
            type=str,
            nargs="+",
            required=True,
            help="name of the class, for all or for each",
        )
        parser.add_argument("--class_names", type=str, nargs="+", help="classes for a text head")
        parser.add_function_arguments(show, as_group=False, skip={"images", "label", "class_names"})
        options = parser.instantiate(parser.parse_args(args))
        say(f"Drawn in {show(**options.as_dict())}")
