"""Which relevance, mask and fill work on which backbone: ``python benchmarks/backbones.py``.

Every cell is run, on a small random model of the same structure, and the page `docs/backbones.md`
is written from what came of it. Relevances, masks and fills are those that `cfmask` exports.
"""

from __future__ import annotations

import inspect
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import nn

import cfmask
from cfmask import Classifier, Counterfactual, InputError, Relevance
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
        timm: Classifier = cfmask.TimmClassifier(kind.stands_in, False, names, image_size=size)
        randomise(timm)
        return timm.eval()
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


def parts(base: type) -> dict[str, Any]:
    """One object of every class that `cfmask` exports below `base` and that needs no argument."""
    found = {}
    for name, part in vars(cfmask).items():
        if inspect.isclass(part) and issubclass(part, base) and not inspect.isabstract(part):
            given = inspect.signature(part).parameters.values()
            if all(p.default is not p.empty or p.kind == p.VAR_POSITIONAL for p in given):
                found[name] = part()
    return dict(sorted(found.items()))


# What comes of (relevance, mask, fill): nothing if it works, or the line that says why not.
Outcomes = dict[tuple[str, str, str], str]


def outcomes(classifier: Classifier) -> Outcomes:
    """Run every relevance with every mask and fill."""
    found: Outcomes = {}
    images, labels = torch.rand(2, 3, *classifier.image_size), torch.tensor([0, 1])
    for name, relevance in parts(Relevance).items():
        why = ""
        try:
            _, maps = relevance.explain(classifier, images, labels)
        except InputError as error:
            why, maps = str(error), torch.zeros(2, *classifier.grid)
        for mask_name, mask in parts(PatchMask).items():
            for fill_name, fill in parts(Fill).items():
                blind = why if mask.needs_relevance else ""
                line = blind or run(classifier, Counterfactual(mask, fill), images, maps)
                found[name, mask_name, fill_name] = line.replace(classifier.name, "this model")
    return found


def run(
    classifier: Classifier, counterfactual: Counterfactual, images: torch.Tensor, maps: torch.Tensor
) -> str:
    """Features of counterfactual images: nothing if they came, or the line that says why not."""
    try:
        filled, replaced = counterfactual(images, maps)
        with torch.no_grad():
            hidden = replaced if counterfactual.fill.removes else None
            features = classifier.features(filled, hidden)
    except InputError as error:
        return str(error)
    assert features.isfinite().all() and len(features) == len(images)
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


def table_rows(name: str, folder: Path) -> list[tuple[list[str], tuple[str, ...]]]:
    """Rows of the table for one kind: cells, and the reasons of what does not work."""
    kind = KINDS[name]
    classifier = build(kind, folder / name.replace(" ", "_"))
    first = [name, kind.examples, read_from(classifier)]
    found = rows(outcomes(classifier)).items()
    return [([*first, ", ".join(who), *cells], reasons) for who, (cells, reasons) in found]


def page(folder: Path) -> str:
    """The page, made by running everything."""
    head = ["backbone", "such as", "feature read from", "relevance", *parts(Fill), "note"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    notes: dict[str, int] = {}
    for name in KINDS:
        for cells, reasons in table_rows(name, folder):
            marks = [str(notes.setdefault(reason, len(notes) + 1)) for reason in reasons]
            lines.append(f"| {' | '.join([*cells, ', '.join(marks)])} |")
    numbered = [f"{number}. {reason}" for reason, number in notes.items()]
    return TEXT_OF_PAGE.format(
        masks=", ".join(parts(PatchMask)), table="\n".join(lines), notes="\n".join(numbered)
    )


TEXT_OF_PAGE = """# Backbones

Which relevance, mask and fill work on which backbone. `python benchmarks/backbones.py` writes this
page: it runs every cell, on a small random model of the same structure. The masks are
{masks}: "yes" holds for all of them, else those that work are named
(`RandomMask` reads no relevance). The notes are the errors that the commands print for the others.

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
        PAGE.write_text(page(Path(folder)))
    print(f"Written to {PAGE}")


if __name__ == "__main__":
    main()
