"""The command cfmask missingness: models and images with masks -> what they answer to the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cfmask import digits, processes
from cfmask import wordnet as imagenet
from cfmask.classifier import Classifier
from cfmask.commands.parser import as_lists, command
from cfmask.comparison.sources import Labels, one_classifier, short_name
from cfmask.errors import InputError, at_least
from cfmask.files import check_out
from cfmask.heads import PROMPT
from cfmask.missingness.findings import Findings
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.lab import check_choices, missingness
from cfmask.missingness.lime import PLAIN_LIME, Lime
from cfmask.missingness.object_masks import MaskedDigits, class_folders_or_none, find_images
from cfmask.missingness.per_image import Images
from cfmask.missingness.removal import check_names
from cfmask.missingness.segments import SEGMENTATIONS
from cfmask.relevance import Relevance
from cfmask.shift import check_apart
from cfmask.terminal import say, show_table

DIGITS = "digits"
WHAT = "models, each a run folder, a .safetensors or .ckpt file, open_clip:NAME/TAG or timm:NAME"


def measure(
    what: list[str],
    data: str,
    masks: str | None = None,
    hidings: tuple[str, ...] = ("black", "grey", "removed"),
    segments: tuple[str, ...] = ("patches",),
    orders: tuple[str, ...] = ("random", "most", "least"),
    relevance: Relevance | None = None,
    side: int = 16,
    most_segments: int = 200,
    images: int = 500,
    out: str = "missingness",
    seed: int = 0,
    samples: int = 1000,
    measures: tuple[str, ...] = ("shape",),
    wordnet: bool | None = None,
    lime: Lime = PLAIN_LIME,
    bars: tuple[str, ...] = (),
    trust: bool = False,
) -> Findings:
    """Hide parts of images in several ways; find and write what models still answer.

    Args:
        what: models, each a run folder, a weights file, open_clip:NAME/TAG or timm:NAME.
        data: folder of images, in class folders or not, or `digits`; a PNG beside an image of
            another format is the mask of its object.
        masks: folder of their masks, laid out as Pixel ImageNet or Salient ImageNet.
        hidings: ways of hiding, by commas.
        segments: what is hidden as a whole, by commas: patches, slic, quickshift, folders of label
            maps (a PNG for each image, a colour for each segment), my_module.my_function.
        orders: random, or most or least relevant segments first, by commas.
        relevance: method that finds relevant segments; by default the masks, else the model's own.
        side: side of square patches, in pixels.
        most_segments: most segments of an image.
        images: most images, spread evenly over the data; 0 for all.
        out: folder for missingness.html and .json, pictures, and answers to go on from.
        seed: seed of the random order, and of digits.
        samples: samples of the bootstrap.
        measures: measures beside the curves, by commas: shape, lime, linearity, concordance.
        wordnet: true insists on the WordNet similarity of the answers, false leaves it out.
        lime: LIME with its parameters.
        bars: classes whose shape bias is drawn, by commas; those that tell most by default.
        trust: import the classes that a run or weights file names.

    Raises:
        InputError: nothing there, an unknown name, images or masks that cannot be used.
    """
    check_choices(hidings, orders, measures)
    at_least(0, images, "images (0 for all)")
    check_out(Path(out))
    check_apart(Path(out), Path(data))
    models = _models(what, _labels(data), trust)
    check_names("class", bars, {name for model in models.values() for name in model.class_names})
    sets = {name: _images(data, masks, model, images, seed) for name, model in models.items()}
    ways = (hidings, segments, orders, side, most_segments, relevance, seed, samples, measures)
    kept, bar = Path(out) / "answers", sys.stdout.isatty()
    found = missingness(models, sets, *ways, wordnet, lime, store=kept, progress=bar)
    found.protocol["data"] = data
    processes.from_first(lambda: found.save(Path(out), bars))
    return found


def _models(what: Sequence[str], labels: Labels, trust: bool) -> dict[str, Classifier]:
    if len(set(what)) < len(what):
        raise InputError(f"Expected each model once, but got {' '.join(what)}.")
    names = [short_name(one, what) if Path(one).exists() else one for one in what]
    device = processes.device()
    return {name: one_classifier(one, labels, trust).to(device) for name, one in zip(names, what)}


def _labels(data: str) -> Labels:
    """Classes for a head from text: the digits', ImageNet's, or those of the folders."""
    if data == DIGITS and not Path(data).exists():
        return Labels(digits.CLASS_NAMES, digits.TEMPLATES)
    if not Path(data).is_dir():
        raise InputError(f"Expected --data to be a folder of images or {DIGITS}, but got {data}.")
    folders = class_folders_or_none(Path(data))
    if not folders or all(name in imagenet.numbers() for name in folders):
        return Labels(imagenet.class_names())
    return Labels(tuple(name.replace("_", " ") for name in folders), PROMPT)


def _images(data: str, masks: str | None, model: Classifier, most: int, seed: int) -> Images:
    if data == DIGITS and not Path(data).exists():
        if masks:
            raise InputError(
                f"Expected no --masks for {DIGITS}, which have their own, got {masks}."
            )
        if model.image_size != (digits.SIZE, digits.SIZE):
            raise InputError(
                f"Expected a model of {digits.SIZE} px for the digits world, but {model.name} "
                f"takes {model.image_size}; give a run on digits or open_clip:tiny-clip."
            )
        return MaskedDigits(count=most or 1000, seed=seed)
    place = Path(masks) if masks else None
    return find_images(Path(data), place, model.class_names, model.preprocess, most)


def measure_missingness(args: Sequence[str]) -> None:
    """Measure what models answer without parts of images: the whole of ``cfmask missingness``.

    Args:
        args: command line without the program.
    """
    ways = f"Ways of hiding: {', '.join(HIDINGS)}. Segments: {', '.join(SEGMENTATIONS)}."
    what = f"{measure.__doc__} {ways}"
    with command("cfmask missingness", what, classes=True) as parser, processes.joined():
        parser.add_argument("what", type=str, nargs="+", help=WHAT)
        parser.add_function_arguments(measure, as_group=False, skip={"what"})
        words = as_lists(args, "--hidings", "--segments", "--orders", "--measures", "--bars")
        options = parser.instantiate(parser.parse_args(words)).as_dict()
        found = measure(**options)
        if processes.rank() == 0:
            for table in found.printed():
                show_table(table)
                say("")
            say(f"Everything of this is in {Path(options['out'])}/")
