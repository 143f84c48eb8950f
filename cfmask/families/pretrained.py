"""Pretrained open_clip models: weights, tokenizer and configuration, or one clear line."""

from __future__ import annotations

import contextlib
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from cfmask.errors import UNFIT, InputError, one_line, unknown
from cfmask.families.fingerprint import (
    is_torchscript,
    mismatch,
    open_clip_candidates,
    shapes,
    uses_quick_gelu,
)
from cfmask.files import read_json
from cfmask.internals import internal
from cfmask.spec import LARGEST
from cfmask.weights import BROKEN, check_weights, read_checkpoint, read_tensors, tensors_of

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TINY_CLIP = Path(__file__).parents[1] / "tiny_clip"


def load_clip(model: str, pretrained: str | None) -> tuple[Any, dict[str, Any]]:
    """An open_clip model in eval mode, and what rebuilds its image tower.

    Args:
        model: name, folder in open_clip's local layout, or `tiny-clip`.
        pretrained: tag, weights file, or None; not read for folders.

    Returns:
        The model, and its `embed_dim`, `vision_cfg` and `quick_gelu`.

    Raises:
        InputError: unknown names, weights that cannot be had, of another architecture, or trained
            with another activation.
    """
    import open_clip

    folder = local_folder(model)
    if folder is None and model not in open_clip.list_models():
        raise unknown("open_clip model", model, ["tiny-clip", *open_clip.list_models()])
    if folder is None and pretrained:
        _check_activation(model, pretrained)
    with _quietly(f"model {model} with {pretrained}"):
        clip = _create(f"local-dir:{folder}" if folder else model, None if folder else pretrained)
    _check_numbers(clip, folder or Path(pretrained or ""))
    # Towers for captions give their tokens beside the feature.
    clip.visual.output_tokens = False
    config, tower = model_config(model), ("embed_dim", "vision_cfg", "quick_gelu")
    return clip.eval(), {key: config[key] for key in tower if key in config}


def _check_numbers(clip: nn.Module, source: Path) -> None:
    """Refuse weights of a file or folder that open_clip took but that are no weights."""
    file = source / WEIGHTS if source.is_dir() else source
    if file.suffix == ".safetensors" and file.is_file():
        check_weights(clip, read_tensors(file), file)
    elif file.is_file() and not is_torchscript(file) and zipfile.is_zipfile(file):
        whole = read_checkpoint(file, mapped=True)
        inner = whole.get("state_dict")
        check_weights(clip, tensors_of(inner if isinstance(inner, dict) else whole), file)
    elif source.exists():
        check_weights(clip, clip.state_dict(), source)


def build_tower(config: Any, model: str) -> nn.Module:
    """An untrained image tower by the description that a file holds; the network is never asked.

    Args:
        config: `embed_dim`, `vision_cfg` and `quick_gelu`, as `load_clip` gives them.
        model: name, for messages.

    Raises:
        InputError: no such description.
    """
    wrong = f"Expected a description of the image tower of {model}, but"
    if not isinstance(config, dict) or not isinstance(config.get("vision_cfg"), dict):
        raise InputError(f"{wrong} there is none.")
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    if not _is_known(vision.get("timm_model_name")):
        raise InputError(
            f"{wrong} it names {vision['timm_model_name']!r}, which is none of timm's."
        )
    if _largest([config.get("embed_dim"), vision]) > LARGEST:
        raise InputError(f"{wrong} it has a size above {LARGEST:,}.")
    build = internal("vision_tower")
    try:
        tower: nn.Module = build(config["embed_dim"], vision, config.get("quick_gelu", False))
    except UNFIT as error:
        raise InputError(f"{wrong} none can be built: {one_line(error)}") from error
    return tower


def check_local(folder: Path) -> None:
    """Refuse a folder in open_clip's layout that would make the network be asked.

    Raises:
        InputError: it names a part by its place on the Hugging Face Hub, or is damaged.
    """
    config = model_config(str(folder))
    towers = [config.get(f"{part}_cfg") for part in ("vision", "text")]
    vision, text = (tower if isinstance(tower, dict) else {} for tower in towers)
    elsewhere = text.get("hf_model_name")
    if not _is_known(vision.get("timm_model_name")):
        elsewhere = vision["timm_model_name"]
    if elsewhere:
        raise InputError(
            f"Refused {folder}: it lacks {elsewhere!r}, which would be looked up on the network; "
            "give --trust true if you know who made it."
        )


def _is_known(trunk: Any) -> bool:
    """Whether timm has a model of this name; hf-hub:owner/name is looked up on the network."""
    import timm

    return trunk is None or (isinstance(trunk, str) and timm.is_model(trunk))


def _largest(value: Any) -> float:
    """The largest number in plain lists and dicts."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return max(map(_largest, inner), default=0)
    return value if isinstance(value, int | float) else 0


def tokenizer_of(model: str, clip: Any) -> Any:
    """Tokenizer of a model: texts -> int64 (N, context length).

    Raises:
        InputError: it cannot be had.
    """
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    folder = local_folder(model)
    with _quietly(f"tokenizer of {model}"):
        if folder and (folder / "merges.txt.gz").is_file():
            merges = str(folder / "merges.txt.gz")
            return SimpleTokenizer(bpe_path=merges, context_length=clip.context_length)
        return open_clip.get_tokenizer(f"local-dir:{folder}" if folder else model)


def logit_bias(clip: Any) -> float:
    """What SigLIP adds to every logit; 0 for CLIP."""
    bias = getattr(clip, "logit_bias", None)
    return 0.0 if bias is None else float(bias.item())


def _create(name: str, pretrained: str | None) -> Any:
    import open_clip
    from open_clip.factory import load_state_dict

    path = Path(pretrained or "")
    # OpenAI's own archives hold the code of the model, which torch then reads as code.
    plain = not (path.is_file() and is_torchscript(path))
    try:
        return open_clip.create_model(name, pretrained, weights_only=plain)
    except RuntimeError:
        if not path.is_file():
            raise
        given = shapes(load_state_dict(str(path), weights_only=plain))
        own = shapes(open_clip.create_model(name).state_dict())
        if given == own:
            raise
        quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
        raise mismatch(name, path, given, own, open_clip_candidates(given, quick)) from None


def local_folder(model: str) -> Path | None:
    """Folder of a model in open_clip's local layout; None for a name."""
    folder = TINY_CLIP if model == "tiny-clip" else Path(model)
    return folder if (folder / CONFIG).is_file() else None


@contextlib.contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Context without open_clip's log, in which every failure is one clear line."""
    # open_clip logs every step on the root logger.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except ImportError as error:
        # open_clip leaves the towers and tokenizers of Hugging Face to a package of theirs.
        raise InputError(
            f"Cannot load open_clip {what}: {one_line(error)}; pip install "
            "transformers sentencepiece, or use head: linear if it is a tokenizer."
        ) from error
    except BROKEN as error:
        raise InputError(f"Cannot load open_clip {what}: {one_line(error)}") from error
    finally:
        logging.disable(level)


def model_config(model: str) -> dict[str, Any]:
    """open_clip's configuration of both towers of a model, by its name or folder.

    Raises:
        InputError: a damaged configuration.
    """
    import open_clip

    folder = local_folder(model)
    if folder is None:
        known: dict[str, Any] = open_clip.get_model_config(model)
        return known
    file = folder / CONFIG
    whole = read_json(file)
    config = whole.get("model_cfg") if isinstance(whole, dict) else None
    if not isinstance(config, dict):
        raise InputError(f"Expected a model_cfg in {file}, but there is none.")
    return config


def _check_activation(model: str, pretrained: str) -> None:
    """Refuse weights trained with QuickGELU for a GELU model, and the other way round."""
    import open_clip

    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise unknown(f"weights of {model}", pretrained, tags)
    quick = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    trained = bool(tag.get("quick_gelu")) if tag else uses_quick_gelu(Path(pretrained))
    twin = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
    ours, others = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    # A tower of timm's has one activation, whatever the flag says.
    if trained == quick or (twin not in open_clip.list_models() and not tag):
        return
    if trained is None:
        warnings.warn(
            f"Nothing in {pretrained} tells GELU from QuickGELU: {ours} is used, as {model} has "
            f"it. If it was trained with {others}, use model {twin}.",
            stacklevel=2,
        )
        return
    raise InputError(
        f"Expected weights trained with {ours} for {model}, but {pretrained} was trained with "
        f"{others}; use model {twin}."
    )
