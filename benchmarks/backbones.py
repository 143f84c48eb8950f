"""Which relevance, mask and fill work on which backbone: ``python benchmarks/backbones.py``.

Every cell is trained by the command, two steps and a report, with a small random model of the same
structure, and the page `docs/backbones.md` is written from what came of it. What works together
is trained together, as several counterfactuals of one run; what fails is told apart by halving.
Relevances, masks and fills are those that `cfmask` exports.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import timm
import torch
from torch import nn

import cfmask
from cfmask import Classifier, Relevance, load_classifier
from cfmask.commands.train_model import train
from cfmask.counterfactual import Fill, PatchMask
from cfmask.families.pretrained import TINY_CLIP

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 679, "width": 32, "heads": 2, "layers": 1}


class Kind(NamedTuple):
    """A kind of backbone.

    Attributes:
        examples: models of this kind.
        stands_in: vision_cfg of open_clip, or name of a timm model: small, of the same structure.
        size: (H, W) of its images here.
    """

    examples: str
    stands_in: dict[str, Any] | str
    size: tuple[int, int] = (64, 96)


KINDS = {
    "CLIP ViT": Kind("open_clip ViT-B-32, ViT-B-16, ViT-L-14, with and without -quickgelu", VIT),
    "CLIP ViT, averaged": Kind(
        "open_clip ViT-L-14-CLIPA",
        {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
    ),
    "CoCa": Kind(
        "open_clip coca_ViT-B-32",
        {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_queries": 5,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
    ),
    "SigLIP": Kind(
        "open_clip ViT-B-16-SigLIP",
        {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    ),
    "CLIP ResNet": Kind("open_clip RN50", {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}),
    "CLIP ConvNeXt": Kind(
        "open_clip convnext_base",
        {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
    ),
    "ViT, class token": Kind("timm vit_base_patch16_224, deit_base_patch16_224", "test_vit"),
    "ViT, averaged, registers": Kind("timm vit_base_patch16_reg4_gap_256", "test_vit2"),
    "ViT, attention pool": Kind("timm vit_base_patch16_siglip_224", "test_vit3"),
    "ViT, relative positions": Kind("timm vit_relpos_base_patch16_224", "test_vit_relpos"),
    "DeiT, distilled": Kind(
        "timm deit_base_distilled_patch16_224", "deit_tiny_distilled_patch16_224", (32, 48)
    ),
    "EVA": Kind("timm eva02_base_patch14_448", "eva02_tiny_patch14_224", (28, 42)),
    "Swin": Kind("timm swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
    "MaxViT, CoAtNet": Kind("timm maxvit_tiny_tf_224", "test_maxvit"),
    "ResNet": Kind("timm resnet50", "test_resnet"),
    "ConvNeXt": Kind("timm convnext_tiny", "test_convnext"),
    "EfficientNet": Kind("timm efficientnet_b0, tf_efficientnet_lite0", "test_efficientnet"),
    "MobileNet": Kind("timm mobilenetv3_large_100", "mobilenetv3_small_050"),
    "RegNet": Kind("timm regnety_016", "regnety_002"),
    "DenseNet": Kind("timm densenet121", "densenet121"),
}


def build(kind: Kind, folder: Path, size: tuple[int, int] | None = None) -> Classifier:
    """A random classifier of a kind, in eval mode; a CLIP is first written to `folder`."""
    size = size or kind.size
    torch.manual_seed(0)
    if isinstance(kind.stands_in, str):
        names = ["cat", "dog"]
        model: Classifier = cfmask.TimmClassifier(kind.stands_in, False, names, image_size=size)
        randomise(model)
        return model.eval()
    if not (folder / "open_clip_config.json").exists():
        write_clip(kind.stands_in, folder)
    clip = cfmask.OpenClipClassifier(str(folder), None, ["cat", "dog"], ["a {}"], image_size=size)
    return clip.eval()


def write_clip(vision: dict[str, Any], folder: Path) -> None:
    """Write a random CLIP in open_clip's local layout, with the words of the tiny CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    trunk = vision.get("timm_model_name")
    side, width = (160 if trunk else 64), (96 if trunk == "test_vit3" else 24)
    model = {"embed_dim": width, "vision_cfg": {"image_size": side, **vision}, "text_cfg": TEXT}
    if vision.get("timm_pool") == "map":
        model |= {"custom_text": True, "init_logit_bias": -10}
    text = json.dumps({"model_cfg": model, "preprocess_cfg": {"size": side}})
    (folder / "open_clip_config.json").write_text(text)
    (folder / "merges.txt.gz").write_bytes((TINY_CLIP / "merges.txt.gz").read_bytes())
    clip = open_clip.create_model(f"local-dir:{folder}")
    randomise(clip)
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")


def randomise(model: nn.Module) -> None:
    """Small noise on every tensor, so that no zero or one hides a defect."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "logit" not in name:
                value.add_(0.03 * torch.randn_like(value))


# Forward passes of an image that a relevance may cost here.
MOST_PASSES = 100


def parts(base: type) -> dict[str, Any]:
    """One object of every class that `cfmask` exports below `base`, as the page has them.

    Left out are those that need an argument, and relevances of more than `MOST_PASSES`.
    """
    found = {}
    for name, part in ((name, getattr(cfmask, name)) for name in cfmask.__all__):
        if inspect.isclass(part) and issubclass(part, base) and not inspect.isabstract(part):
            given = inspect.signature(part).parameters.values()
            if all(p.default is not p.empty or p.kind == p.VAR_POSITIONAL for p in given):
                found[name] = part()
    return {k: v for k, v in sorted(found.items()) if getattr(v, "passes", 0) <= MOST_PASSES}


# What comes of (relevance, mask, fill): nothing if it works, or the line that says why not.
Outcomes = dict[tuple[str, str, str], str]
Cell = tuple[str, str]
# Rows of the table: cells, and the reasons of what does not work.
Rows = list[tuple[list[str], tuple[str, ...]]]

TWO_STEPS = [
    "--data=DigitsData", "--data.train_images=4", "--data.val_images=4", "--data.batch_size=2",
    "--probe=false", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--evaluation.shifts=[digits/id]", "--evaluation.images=4", "--evaluation.pictures=0",
]  # fmt: skip


def outcomes(kind: Kind, folder: Path, relevances: Sequence[str] = ()) -> Outcomes:
    """Train every relevance, or the named ones, with every mask and fill."""
    chosen, found = model_options(kind, folder), {}
    # What one encoder refuses lies side by side.
    masks = sorted(parts(PatchMask).items(), key=lambda item: item[1].needs_relevance)
    fills = sorted(parts(Fill).items(), key=lambda item: item[1].removes)
    cells = [(mask, fill) for mask, _ in masks for fill, _ in fills]
    removing = {fill for fill, part in fills if part.removes}
    cells.sort(key=lambda cell: cell[1] in removing)
    for relevance in relevances or parts(Relevance):

        def command(cells: Sequence[Cell], relevance: str = relevance) -> str:
            return train_two_steps([*chosen, f"--model.relevance={relevance}"], cells)

        for (mask, fill), line in told_apart(command, cells).items():
            found[relevance, mask, fill] = line
    order = [(r, m, f) for r in relevances or parts(Relevance) for m in parts(PatchMask)
             for f in parts(Fill)]  # fmt: skip
    return {cell: found[cell] for cell in order}


def told_apart(command: Callable[[Sequence[Cell]], str], cells: Sequence[Cell]) -> dict[Cell, str]:
    """The line of each cell, of a command that says nothing only if all its cells work."""
    line = command(cells)
    if not line or len(cells) == 1:
        return dict.fromkeys(cells, line)
    half = len(cells) // 2
    return told_apart(command, cells[:half]) | told_apart(command, cells[half:])


def model_options(kind: Kind, folder: Path) -> list[str]:
    """Options of the command for the model of a kind, whose weights are written to `folder`."""
    classifier, size = "--model.classifier", json.dumps(kind.size)
    if isinstance(kind.stands_in, str):
        weights = folder / "timm.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = timm.create_model(kind.stands_in)
        randomise(net)
        torch.save(net.state_dict(), weights)
        options = ["TimmClassifier", kind.stands_in, str(weights)]
    else:
        build(kind, folder)
        options = ["OpenClipClassifier", str(folder), "null"]
    names = (classifier, f"{classifier}.model", f"{classifier}.pretrained")
    chosen = [f"{name}={value}" for name, value in zip(names, options)]
    if not isinstance(kind.stands_in, str):
        chosen.append(f'{classifier}.templates=["a {{}}"]')
    return ["--model=MaskedDistillation", *chosen, f"{classifier}.image_size={size}"]


def train_two_steps(options: Sequence[str], cells: Sequence[Cell]) -> str:
    """One run of the command with all these masks and fills: nothing, or its line of error."""
    made = [
        {"class_path": "Counterfactual", "init_args": {"mask": mask, "fill": fill}}
        for mask, fill in cells
    ]
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [*options, f"--model.counterfactual={json.dumps(made)}", *TWO_STEPS]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                train([*words, f"--run={run}"])
        except SystemExit as end:
            assert end.code == 2, said.getvalue()
            # Refused, and before anything was written.
            assert not run.exists()
            model = next(word for word in options if ".classifier.model=" in word)
            name = model.partition("=")[2]
            line = next(x for x in said.getvalue().splitlines() if x.startswith("error: "))
            return line.removeprefix("error: ").replace(name, "this model")
        tuned = load_classifier(run)
        assert all(value.isfinite().all() for value in tuned.state_dict().values())
    return ""


def rows(found: Outcomes) -> dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Relevances that fare alike -> the masks that work with each fill, and the reasons else."""
    relevances, masks, fills = (list(dict.fromkeys(key[k] for key in found)) for k in range(3))
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for relevance in relevances:
        cells = []
        for fill in fills:
            works = [mask for mask in masks if not found[relevance, mask, fill]]
            names = " and ".join(works) or "no"
            cells.append("yes" if len(works) == len(masks) else names)
        lines = {
            found[relevance, m, f].replace(relevance, "this relevance")
            for m in masks
            for f in fills
        }
        groups.setdefault((tuple(cells), tuple(sorted(lines - {""}))), []).append(relevance)
    return {tuple(names): outcome for outcome, names in groups.items()}


def read_from(classifier: Classifier) -> str:
    """What the feature is read from, in words."""
    words = {
        "token": "the class token",
        "prefix": "class and distillation token",
        "average": "the mean of the patches",
        "all": "the mean of all tokens",
        "map": "an attention pool",
    }
    return words[classifier.tokens.pooled] if classifier.tokens else "a feature map"


def table_rows(name: str, folder: Path, relevances: Sequence[str] = ()) -> Rows:
    """Rows of the table for one kind: cells, and the reasons of what does not work."""
    kind, folder = KINDS[name], folder / name.replace(" ", "_")
    first = [name, kind.examples, read_from(build(kind, folder))]
    found = rows(outcomes(kind, folder, relevances)).items()
    return [([*first, ", ".join(who), *cells], reasons) for who, (cells, reasons) in found]


def page(found: Mapping[str, Rows]) -> str:
    """The page, made from the rows of every kind."""
    head = ["backbone", "such as", "feature read from", "relevance", *parts(Fill), "note"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    notes: dict[str, int] = {}
    for rows in found.values():
        for cells, reasons in rows:
            marks = [str(notes.setdefault(reason, len(notes) + 1)) for reason in reasons]
            lines.append(f"| {' | '.join([*cells, ', '.join(marks)])} |")
    numbered = [f"{number}. {reason}" for reason, number in notes.items()]
    return TEXT_OF_PAGE.format(
        masks=", ".join(parts(PatchMask)), table="\n".join(lines), notes="\n".join(numbered)
    )


TEXT_OF_PAGE = """# Backbones

Which relevance, mask and fill work on which backbone. `python benchmarks/backbones.py` writes this
page: every cell is a run of `train.py`, two steps and a report, with a small random model of the
same structure. The masks are {masks}: "yes" holds for all of them, else those that work are named
(`RandomMask` reads no relevance). Not in the table are the relevances that need a name
(`PackageCAM`), a folder (`SavedRelevance`) or hundreds of passes (`LimeRelevance`). The notes are
the errors that the command prints for the others.

{table}

Notes:

{notes}

## Image sizes

`image_size` of a classifier is a side in pixels or (H, W). Patches must divide it (32 px for CLIP's
ResNets); position embeddings are resampled. It is saved with the weights. CNNs take any size, but
the grid of relevance, that of the last stage, must divide the image too.

Pictures of every model are resized by their short side and cropped at the centre. SigLIP's own
transform stretches the whole picture to a square instead; expect other figures on oblong pictures.

## Removed patches

`NoFill` removes patches instead of replacing them. In a transformer no query attends to them, and a
mean over patches is over those that are left; class, distillation and register tokens stay. Where
every image loses the same number of patches, as with `RandomMask(exact=True)`, CLIP's and timm's
plain ViTs do not compute them at all. A CNN runs by layer masking (arXiv 2211.14646); the attention
pool of CLIP's ResNets then reads the positions that see anything. With every patch removed the
feature is finite and the same for every image.

## Other transformers

A timm transformer whose attention is not computed by torch's own function (CaiT, ConViT) has no
attention maps to read: it gets class activation maps and every fill but `NoFill`. Models without a
grid of patches (MLP-Mixer, LeViT, CrossViT) are refused.

## QuickGELU

OpenAI's CLIP was trained with QuickGELU, LAION's with GELU; the other one costs accuracy silently.
Tags of open_clip and weights files that tell (an archive as OpenAI released it, an
`open_clip_config.json` beside the file, a tag in the name of file or folder) are refused for the
wrong model, and the right one is named. Of other files a warning says what is assumed.
"""


def main() -> None:
    """Write docs/backbones.md."""
    torch.set_num_threads(1)
    # open_clip says of every model written here that it is random.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: table_rows(name, Path(folder)) for name in KINDS}
    PAGE.write_text(page(found))
    print(f"Written to {PAGE}")


if __name__ == "__main__":
    main()
