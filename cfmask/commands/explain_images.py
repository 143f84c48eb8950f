"""The command cfmask explain: pictures -> what speaks for their class, by LIME or by relevance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.commands.own_pictures import png, read_pictures
from cfmask.commands.parser import as_lists, command
from cfmask.comparison.sources import Labels, one_classifier
from cfmask.errors import InputError, at_least, check_seed
from cfmask.heads import PROMPT
from cfmask.images import to_unit
from cfmask.labels import labels_for
from cfmask.missingness.lime import MOST_SEGMENTS, PLAIN_LIME, Lime, check_hidings
from cfmask.missingness.object_masks import Example
from cfmask.missingness.painting import painted
from cfmask.missingness.segments import Labels as Cut
from cfmask.missingness.segments import as_array, cutters
from cfmask.relevance import Relevance, default_relevance
from cfmask.reporting.sheet import draw
from cfmask.terminal import say


def explain(
    images: list[str],
    model: str,
    by: Literal["lime", "relevance"] = "lime",
    label: list[str] | None = None,
    class_names: list[str] | None = None,
    hidings: tuple[str, ...] = ("black", "grey", "removed"),
    segments: str = "patches",
    relevance: Relevance | None = None,
    side: int = 16,
    lime: Lime = PLAIN_LIME,
    top: int = 50,
    out: str = "explained.png",
    seed: int = 0,
    trust: bool = False,
) -> Path:
    """Draw what speaks for and against the class of pictures, and give the file.

    Args:
        images: picture files.
        model: run folder, weights file, open_clip:NAME/TAG or timm:NAME.
        by: lime, with green for and red against the class, or relevance, a map.
        label: name of the class, one for all pictures or one each; the likeliest by default.
        class_names: classes of a head that is made from text, by commas; the labels by default.
        hidings: ways of hiding for LIME, by commas.
        segments: segments for LIME: patches, slic, quickshift, a folder of label maps (a PNG for
            each picture, a colour for each segment), or my_module.my_function.
        relevance: method of the map; by default the one that fits the encoder.
        side: side of square patches, in pixels.
        lime: LIME with its parameters.
        top: number of segments to colour, those of the largest scores.
        out: PNG file to write.
        seed: seed of the samples.
        trust: import the classes that a run or weights file names.

    Raises:
        InputError: a picture, model or label that cannot be used, or too many samples.
    """
    check_hidings(hidings)
    at_least(0, top, "segments that are coloured (top)")
    check_seed(seed)
    drawn = png(out, images)
    classifier = _classifier(model, tuple(class_names or sorted(set(label or ()))), trust)
    (cutter,) = cutters([segments], side, MOST_SEGMENTS, classifier.preprocess).values()
    raw, names = read_pictures(images, classifier.preprocess), classifier.class_names
    batch = to_unit(raw)
    shares = torch.no_grad()(classifier)(batch).softmax(1)
    classes = torch.tensor(labels_for(label, len(raw), names)) if label else shares.argmax(1)
    if by == "relevance":
        maps = (relevance or default_relevance(classifier)).explain(classifier, batch, classes)[1]
        columns = {"relevance": F.interpolate(maps.detach().unsqueeze(1), batch.shape[2:])}
    else:
        examples = [Example(*row, None) for row in zip(images, raw, classes.tolist())]
        cuts = [(example, cutter(example)) for example in examples]
        how = (lime, classifier, cuts, seed, top)
        columns = {f"LIME, {way}": _lime(way, *how) for way in hidings}
    titles = [f"{names[k]} {100 * share[k]:.0f} %" for k, share in zip(classes.tolist(), shares)]
    draw(drawn, {"image": batch, **columns}, titles)
    return drawn


def _classifier(model: str, names: tuple[str, ...], trust: bool) -> Classifier:
    if model.startswith("open_clip:") and not names:
        raise InputError(
            f"Expected classes for the head of {model}, which is made from text; give --label or "
            "--class_names."
        )
    return one_classifier(model, Labels(names, PROMPT), trust)


def _lime(
    way: str,
    lime: Lime,
    model: Classifier,
    cuts: Sequence[tuple[Example, Cut]],
    seed: int,
    top: int,
) -> Tensor:
    """Pictures with the segments that speak for and against their class, float (N, 3, H, W)."""
    made = []
    for example, cut in cuts:
        scores = lime.scores(model, to_unit(example.image), cut, way, example.label, seed)
        made.append(painted(as_array(example.image), cut, scores, top))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()


def explain_images(args: Sequence[str]) -> None:
    """Explain one's own pictures: the whole of ``cfmask explain``.

    Args:
        args: command line without the program.
    """
    with command("cfmask explain", explain.__doc__, classes=True) as parser:
        parser.add_argument("images", type=str, nargs="+", help="picture files")
        parser.add_argument("--label", type=str, nargs="+", help="name of the class, or one each")
        parser.add_function_arguments(explain, as_group=False, skip={"images", "label"})
        words = as_lists(args, "--hidings", "--class_names")
        options = parser.instantiate(parser.parse_args(words))
        say(f"Drawn in {explain(**options.as_dict())}")
