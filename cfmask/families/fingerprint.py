"""Fingerprint: the architecture and activation that a weights file was made for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmask.errors import InputError
from cfmask.files import read_json
from cfmask.internals import internal

# Names by tensor shape, as a state dict has them.
Shapes = Mapping[str, tuple[int, ...]]
Candidate = tuple[str, Callable[[], nn.Module]]

# timm models that files of other origin are most often made for.
COMMON_TIMM = """
resnet18 resnet34 resnet50 tf_efficientnet_lite0 efficientnet_b0 mobilenetv2_100
mobilenetv3_small_100 mobilenetv3_large_100 vit_tiny_patch16_224 vit_small_patch16_224
vit_base_patch16_224 vit_base_patch32_224 vit_base_patch16_clip_224 vit_base_patch32_clip_224
vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_base_patch16_siglip_224
deit_tiny_distilled_patch16_224 deit_base_distilled_patch16_224 eva02_tiny_patch14_224
eva02_base_patch14_448 vit_large_patch16_224 convnext_tiny convnext_small convnext_base
convnextv2_tiny swin_tiny_patch4_window7_224 swin_base_patch4_window7_224 resnet101 resnet152
resnet50d regnety_016 densenet121 tf_efficientnetv2_s
"""


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shape of each tensor by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def mismatch(
    model: str, path: Path, given: Shapes, own: Shapes, candidates: Iterable[Candidate]
) -> InputError:
    """Error for weights that do not fit a model: what differs, and the likely right architecture.

    Args:
        model: name of the model.
        path: of the weights.
        given: what the file holds.
        own: what the model has.
        candidates: names of other architectures and what builds them, the likeliest first. They
            are built without memory, and no further than to the first that fits well.
    """
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    other = [name for name in own if name in given and own[name] != given[name]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if other:
        first = f"{other[0]} {given[other[0]]} instead of {own[other[0]]}"
        parts.append(f"{len(other)} of another shape (first {first})")
    right = _likely(given, candidates)
    advice = f"they fit model {right}" if right else "they fit no model known here"
    return InputError(
        f"Expected weights of {model} in {path}, but its tensors differ: {', '.join(parts)}; "
        f"{advice}."
    )


def _likely(given: Shapes, candidates: Iterable[Candidate], enough: float = 0.9) -> str | None:
    """Name of the first candidate that shares nearly all names and shapes; heads may differ.

    Weights in the candidate's order under other names fit too. A candidate that is a part of a
    model is compared with the part of that name.
    """
    for name, build in candidates:
        with torch.device("meta"):
            state = shapes(build().state_dict())
        if list(state.values()) == list(given.values()):
            return name
        own = set(state.items())
        parts = {key.split(".")[0] for key, _ in own}
        held = {item for item in given.items() if item[0].split(".")[0] in parts}
        if len(own & held) > enough * len(own | held):
            return name
    return None


def timm_candidates(model: str) -> Iterator[Candidate]:
    """Timm models of names like `model`, and those that are most often met."""
    import difflib

    import timm

    near = difflib.get_close_matches(model, timm.list_models(), n=12, cutoff=0.6)
    for name in dict.fromkeys([*near, *COMMON_TIMM.split()]):
        yield name, partial(timm.create_model, name)


def open_clip_candidates(given: Shapes, quick_gelu: bool) -> Iterator[Candidate]:
    """open_clip models whose configuration agrees with the shapes of a file.

    Args:
        given: tensors of the file; those of the image tower are named `visual.` and so on.
        quick_gelu: twins that differ in the activation alone cannot be told apart; the one with
            this is given.
    """
    import open_clip

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        quick = bool(config.get("quick_gelu", False))
        twin = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
        if (quick == quick_gelu or twin not in open_clip.list_models()) and _agrees(config, given):
            yield name, partial(_image_tower, config)


def _image_tower(config: Any) -> nn.Module:
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    return nn.ModuleDict({"visual": internal("vision_tower")(config["embed_dim"], vision)})


def _agrees(config: Any, given: Shapes) -> bool:
    """Whether the sizes that are cheap to read agree: words, text width, patches and stages."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    for prefix in ("", "text."):
        words = given.get(f"{prefix}token_embedding.weight")
        if words and words != (text.get("vocab_size", 49408), text.get("width", 512)):
            return False
    if any(name.startswith("visual.trunk.") for name in given):
        return "timm_model_name" in vision
    if "visual.attnpool.positional_embedding" in given:
        return isinstance(vision.get("layers"), list)
    patch = vision.get("patch_size")
    expected = (vision.get("width", 768), 3, patch, patch)
    return given.get("visual.conv1.weight") == expected


def uses_quick_gelu(path: Path) -> bool | None:
    """Whether the weights of a file were trained with QuickGELU; None if unknown.

    Read are, in this order: the code inside a TorchScript archive (as OpenAI released), an
    open_clip_config.json beside the file, and an open_clip tag in the name of file or folder.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            code = [name for name in archive.namelist() if re.search(r"/code/.*\.py$", name)]
            if code:
                # QuickGELU is x · sigmoid(1.702 x); tracing keeps its name, not always the number.
                return any(re.search(rb"QuickGELU|1\.702", archive.read(name)) for name in code)
    config = path.parent / "open_clip_config.json"
    if config.is_file():
        whole = read_json(config)
        model = whole.get("model_cfg") if isinstance(whole, dict) else None
        return isinstance(model, dict) and bool(model.get("quick_gelu", False))
    return _tag_of(f"{path.parent.name}/{path.name}")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI released its weights."""
    if not zipfile.is_zipfile(path):
        return False
    # As torch itself tells one, or a pickle with a folder called code would be read as code.
    names: list[str] = internal("archive")(str(path)).get_all_records()
    return "constants.pkl" in names


def _tag_of(name: str) -> bool | None:
    """Activation that all open_clip weights of the longest tag in a name share; None without."""
    import open_clip

    plain = re.sub("[^a-z0-9]", "", name.lower())
    if "quickgelu" in plain:
        return True
    found: dict[str, set[bool]] = {}
    for model, tag in open_clip.list_pretrained():
        key = re.sub("[^a-z0-9]", "", tag.lower())
        if len(key) > 4 and key in plain:
            config = open_clip.get_pretrained_cfg(model, tag)
            found.setdefault(key, set()).add(bool(config.get("quick_gelu", False)))
    kinds = found[max(found, key=len)] if found else set()
    return kinds.pop() if len(kinds) == 1 else None
