"""The short options of cfmask train and its help, without a model library.

Short options stand for the long ones that nearly everyone sets, which remain. Help and typos are
answered before torch is imported.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from cfmask import names_in
from cfmask.commands.outline import help_lines
from cfmask.commands.shipped import with_shipped_configs
from cfmask.errors import InputError, no_option, unknown

# The method of the paper, which is the default, then the others by name.
_METHODS = sorted(names_in("methods"), key=lambda n: (n != "MaskedDistillation", n.lower()))

# The help by groups: short option | long options that it stands for | what it is.
_TABLE = f"""
What
--model WHAT | | timm:NAME, open_clip:NAME/TAG, my_module:MyNet, a run, a weights file
--method NAME | --model | {", ".join(_METHODS)}
--teacher WHAT | --model.teacher | another model than the start to distil from, named as --model is
--descriptions FILE | --model.classifier.descriptions | JSON: descriptors of each class for the head
--mask NAME | --model.counterfactual.mask | ObjectMask, ContextMask, RandomMask
--fill NAME | --model.counterfactual.fill | \
SingleFill, MultiFill, NoFill, ConstantFill, BlurFill, ShuffleFill
--relevance NAME | --model.relevance | \
AttentionRelevance, GradCAM, HiResCAM, LayerCAM, AttentionRollout

How
--lr NUMBER | --model.lr | peak learning rate
--epochs NUMBER | --trainer.max_epochs | passes over the training images
--batch-size NUMBER | --data.batch_size | images a step on a device
--head-lr NUMBER | --model.head_lr | peak learning rate of the head, if another
--layer-decay NUMBER | --model.layer_decay | learning rate of a layer as a share of the next one's
--label-smoothing NUMBER | --model.label_smoothing | such as 0.1; 0 for none
--augment NAME | --data.augmentation | randaugment, trivialaugment
--mixup ALPHA | --model.mixup | such as 0.8, for the images of the task loss
--cutmix ALPHA | --model.cutmix | such as 1.0, for the images of the task loss
--baseline | | also fine-tune plainly in RUN-plain, and report both
--average NAME | | ema, beta: of the weights of all steps, a row of its own
--precision NAME | --trainer.precision | auto, 32-true, bf16-mixed, 16-mixed
--devices NUMBER | --trainer.devices | number of GPUs or processes
--seed NUMBER | --seed_everything | seed of the run
--workers NUMBER | --data.workers --evaluation.workers | processes that decode images

Evaluation
--shifts NAMES | --evaluation.shifts | sets, such as folders or digits,imagenet/v2
--metrics NAMES | --evaluation.metrics | metrics of your own: my_module.MARGIN,…
--data-root FOLDER | --evaluation.data_root | folder of these sets
--holdout NUMBER | --data.holdout --evaluation.holdout | \
share held out as the test set of a FOLDER without train/: 0.2
--wise NUMBERS | --evaluation.wise | WiSE-FT weights: 0.5, or 0,0.1,...,1

The run
--config NAME | | a file, or a shipped one by name: demo, folder, imagenet/vit_b32
--run FOLDER | | folder for config, weights, metrics and report
--logger NAMES | --logger | csv, tensorboard, wandb, mlflow
--overwrite | | replace another run in that folder
--resume | | go on from the last checkpoint
--probe | | fit the head first; false leaves a random one as it is
--skip_nonfinite NUMBER | | number of steps without a finite gradient to leave out
"""


def _rows(lines: Sequence[str]) -> list[tuple[str, tuple[str, ...], str]]:
    """Short option, long ones and help of some lines of the table."""
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [(name, tuple(longs.split()), what) for name, longs, what in cells]


_GROUPS = [group.splitlines() for group in _TABLE.strip().split("\n\n")]
HELP = {heading: _rows(lines) for heading, *lines in _GROUPS}
SHORT = {name.split()[0]: longs for group in HELP.values() for name, longs, _ in group if longs}
# torchvision's classes by short name.
AUGMENTS = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}
# Methods with a distance to a teacher, and the tag of a model without its weights.
DISTILLING = ("MaskedDistillation", "Distillation")
UNTRAINED = "random"
# Options that name a model.
MODELS = ("--model", "--teacher")
# Groups whose settings have names of their own behind a dot.
GROUPS = ("model", "data", "trainer", "evaluation", "checkpoints", "optimizer", "lr_scheduler")
OTHERS = ("-c", "-h", "--help", "--help-all", "--print_config", "--seed_everything")


def prepared(args: Sequence[str]) -> list[str]:
    """A command line with long options for short ones, and paths for names of shipped configs.

    Args:
        args: the words after ``cfmask train``. A folder before all options is that of the images.

    Raises:
        InputError: an unknown option, with the nearest; a folder that does not exist.
    """
    words = [part for arg in args for part in _parts(arg)]
    words = _with_folder(words)
    _check_names(words)
    return with_shipped_configs([*_long(words), *_threshold(words)])


def brief_help() -> str:
    """What ``cfmask train --help`` prints."""
    lines = [
        "usage: cfmask train [FOLDER] [OPTION ...]",
        "",
        "Fine-tune a pretrained classifier, then evaluate it in and out of distribution.",
        "FOLDER holds train/<class>/*, and test folders beside train/; or the classes,",
        "of which a part is held out as the test set. Without it, a --config says what",
        "to train on: cfmask train --config demo",
    ]
    for heading, group in HELP.items():
        lines += ["", f"{heading}:"]
        lines += [line for name, _, what in group for line in help_lines(name, what)]
    return "\n".join(
        [
            *lines,
            "",
            "Settings of a class:  --model.help MaskedDistillation  --data.help FolderData",
            "All settings:         --help-all",
        ]
    )


# Names with commas between them, by the short and by the long option.
LISTS = ("--shifts", "--metrics", "--evaluation.shifts", "--evaluation.metrics")


def _parts(arg: str) -> list[str]:
    """A short `--option=value` as two words, dashes in names as underscores may be written."""
    option, is_set, value = arg.partition("=")
    name = option if option in SHORT else option.replace("_", "-")
    if name in SHORT or name in MODELS or name in LISTS:
        return [name, value] if is_set else [name]
    return [arg]


def _with_folder(words: list[str]) -> list[str]:
    """The folder of images as its options, with the configuration for folders."""
    if not words or words[0].startswith("-"):
        return words
    folder = words[0]
    if not Path(folder).is_dir():
        raise InputError(
            f"Expected a folder of images or an option, but got {folder!r}, which is no folder."
        )
    if "--holdout" in words and (Path(folder) / "train").is_dir():
        raise InputError(
            f"Expected a folder without train/ for --holdout, but {folder} has one and its test "
            "sets beside it; leave --holdout out."
        )
    run = f"runs/{Path(folder).resolve().name}"
    places = ["--data.root", folder, "--evaluation.data_root", folder]
    return ["--config", "folder", "--run", run, *places, *words[1:]]


def _check_names(words: Sequence[str]) -> None:
    known = {*SHORT, *(name.split()[0] for group in HELP.values() for name, _, _ in group), *OTHERS}
    known |= {f"--{group}" for group in GROUPS}
    for word in words:
        option = word.partition("=")[0]
        if not option.startswith("--") or option in known or option == "--":
            continue
        if option.split(".")[0].removeprefix("--") in GROUPS and "." in option:
            continue
        raise no_option(option, known, "--help, and --help-all")


def _long(words: Sequence[str]) -> list[str]:
    """Every short option and its value as the long ones it stands for."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word not in SHORT and word not in MODELS and word not in LISTS:
            found.append(word)
            continue
        value = next(rest, "--")
        if value.startswith("--"):
            raise InputError(f"Expected a value after {word}, but got none.")
        if word in MODELS:
            found += _model(word, value, words)
        elif word == "--augment":
            if value not in AUGMENTS:
                raise unknown("augmentation", value, AUGMENTS)
            found += [*SHORT[word], f"torchvision.transforms.v2.{AUGMENTS[value]}"]
        elif word in (*LISTS, "--logger") and value[:1] != "[":
            found += [*SHORT.get(word, [word]), json.dumps(value.split(","))]
        elif value.startswith("-"):
            # A number below 0, which would be taken for an option of its own.
            found += [f"{long}={value}" for long in SHORT.get(word, [word])]
        else:
            found += [part for long in SHORT.get(word, [word]) for part in (long, value)]
    return found


def _model(word: str, value: str, words: Sequence[str]) -> list[str]:
    """The options of a model, or of a teacher, by name.

    What `--model` gives and is no such name is the class of a method.
    """
    family, is_model, name = value.partition(":")
    place = "--model.classifier" if word == "--model" else "--model.teacher"
    units = [] if any(w.startswith("--model.distance") for w in words) else _IN_ITS_OWN_UNITS
    if not is_model:
        if Path(value).exists() or "/" in value:
            # An epoch's weights or a run, whose own family it is, and as a start its own distance.
            chosen = [place, "SavedClassifier", f"{place}.path", value]
            return chosen if word == "--model" else chosen + units
        if word == "--model":
            return ["--model", value]
    near = difflib.get_close_matches(family, ("timm", "open_clip"), cutoff=0.7)
    if not is_model or (near and family not in near):
        more = ", a weights file or a method's class" if word == "--model" else " or a weights file"
        raise InputError(
            f"Expected {word} timm:NAME, open_clip:NAME/TAG, my_module:MyNet, a run folder{more}, "
            f"but got {value}."
        )
    if family == "open_clip":
        base, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
        chosen = [place, "OpenClipClassifier", f"{place}.model", base]
        chosen += [f"{place}.pretrained", tag or UNTRAINED]
        return chosen if word == "--model" else chosen + units
    if family == "timm":
        base, _, tag = name.partition("/")
        weights = {"": "true", UNTRAINED: "false"}.get(tag, tag)
        chosen = [place, "TimmClassifier", f"{place}.model", base, f"{place}.pretrained", weights]
    else:
        chosen = [place, "ModuleClassifier", f"{place}.module", f"{family}.{name}"]
        chosen += [f"{place}.head", "linear"]
    return chosen + (units if _distils(words) else [])


def _threshold(words: Sequence[str]) -> list[str]:
    """The paper's threshold for a mask and fill by short name, unless one is given."""
    given = dict(itertools.pairwise(words))
    explicit = any(word.startswith("--model.counterfactual.mask.") for word in words)
    if explicit or not {"--mask", "--fill"} & set(given):
        return []
    pair = given.get("--mask", "ObjectMask"), given.get("--fill", "SingleFill")
    settings = THRESHOLDS.get(pair, {})
    return [f"--model.counterfactual.mask.{name}={value}" for name, value in settings.items()]


# Thresholds of the paper's runs (arXiv 2303.03052) by mask and fill.
THRESHOLDS: dict[tuple[str, str], dict[str, str]] = {
    ("RandomMask", "SingleFill"): {"probability": "0.5"},
    ("ObjectMask", "SingleFill"): {"threshold": "0.3"},
    ("ContextMask", "SingleFill"): {"threshold": "0.5"},
    ("RandomMask", "MultiFill"): {"probability": "0.5"},
    ("ObjectMask", "MultiFill"): {"threshold": "0.6"},
    ("ContextMask", "MultiFill"): {"threshold": "0.3"},
    ("RandomMask", "NoFill"): {"probability": "0.75", "exact": "true"},
    ("ObjectMask", "NoFill"): {"threshold": "0.3"},
    ("ContextMask", "NoFill"): {"threshold": "0.6"},
}
# The weight for CLIP's features suits no others; relative to the features' mean square one does.
_IN_ITS_OWN_UNITS = ["--model.distance", "relative_feature", "--model.distill_weight", "4"]


def _distils(words: Sequence[str]) -> bool:
    """Whether the method is one with a distance to a teacher, as that of folders is."""
    method = dict(itertools.pairwise(words)).get("--method", DISTILLING[0])
    return method.rpartition(".")[2] in DISTILLING
