"""Predict: a model in any exported format and pictures -> the likeliest classes.

An entry of `READERS` opens one format. Weights are read with safetensors or weights_only, so
nothing is unpickled; a .pt2 file is a program, and is opened only if the caller trusts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cfmask.checkpoint import WEIGHTS, load_classifier, read_tensors
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.exporting.native import native_timm
from cfmask.exporting.provenance import FILE, KEY
from cfmask.families.openclip import OpenClipClassifier
from cfmask.families.timm import TimmClassifier
from cfmask.images import Picture, Preprocess, to_unit

OPEN_CLIP, HEAD = "open_clip_model.safetensors", "head.safetensors"
TIMM, ONNX, PT2 = "model.safetensors", "model.onnx", "model.pt2"
# The file by which a folder of a format is known, in the order in which they are looked for.
MAIN_FILES = {
    "safetensors": WEIGHTS,
    "open_clip": OPEN_CLIP,
    "timm": TIMM,
    "onnx": ONNX,
    "torch_export": PT2,
}
SUFFIXES = {".ckpt": "safetensors", ".onnx": "onnx", ".pt2": "torch_export"}


@dataclass(frozen=True)
class Predictor:
    """A model ready to name the classes of pictures.

    Attributes:
        class_names: K names, in the order of the logits.
        preprocess: picture -> uint8 (3, H, W).
        logits: images float (B, 3, H, W) in [0, 1] -> float (B, K), without gradient.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    logits: Callable[[Tensor], Tensor]

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Probabilities float (B, K), the softmax of the logits, of RGB pictures of any size."""
        with torch.no_grad():
            images = torch.stack([self.preprocess(picture) for picture in pictures])
            return self.logits(to_unit(images)).softmax(1)


def open_model(
    path: str | Path, class_names: Sequence[str] | None = None, trusted: bool = False
) -> Predictor:
    """Open a model by whatever tool its format is for.

    Args:
        path: a run folder, what `cfmask export` wrote, the weights file in it, a training
            checkpoint, or a folder in timm's or open_clip's Hub layout with safetensors weights.
        class_names: K names in place of the stored ones; an open_clip folder becomes a zero-shot
            classifier of them.
        trusted: True opens .pt2 files, which can execute code.

    Raises:
        InputError: nothing there, an unknown or broken file, no class names, a .pt2 file without
            trust, or a library that is not installed.
    """
    form, file = _recognise(Path(path))
    if form == "torch_export" and not trusted:
        raise InputError(
            f"Refused {file}: a .pt2 file can execute code when it is loaded; give --trust true if "
            "you know who made it, or export to another format."
        )
    try:
        predictor = READERS[form](file, class_names)
    except InputError:
        raise
    # Each tool has errors of its own for broken and foreign files.
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"Cannot read {file} as {form}: {line}") from error
    return _named(predictor, class_names)


def _named(predictor: Predictor, class_names: Sequence[str] | None) -> Predictor:
    if class_names is None:
        return predictor
    if len(class_names) != len(predictor.class_names):
        raise InputError(
            f"Expected {len(predictor.class_names)} class names, as the model has classes, but got "
            f"{len(class_names)}."
        )
    return replace(predictor, class_names=tuple(class_names))


def _recognise(path: Path) -> tuple[str, Path]:
    """Format and main file of a folder or file."""
    if path.is_dir():
        found = [(form, path / name) for form, name in MAIN_FILES.items() if (path / name).exists()]
        if not found:
            raise InputError(
                f"Expected one of {', '.join(MAIN_FILES.values())} in {path}, but none is there."
            )
        return found[0]
    if not path.is_file():
        raise InputError(f"Expected a model, but {path} does not exist.")
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix], path
    if path.suffix != ".safetensors":
        raise InputError(
            f"Expected a folder or a .safetensors, .ckpt, .onnx or .pt2 file, but got {path}."
        )
    texts = _texts(path)
    if "classifier" in texts:
        return "safetensors", path
    stored = json.loads(texts.get(KEY, "{}")).get("format")
    beside = "open_clip" if (path.parent / "open_clip_config.json").is_file() else "timm"
    return stored or beside, path


def _texts(path: Path) -> dict[str, str]:
    """The header of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"Cannot read weights from {path}: {error}. Is it truncated?") from error


def _read_own(file: Path, class_names: Sequence[str] | None) -> Predictor:
    return _of_classifier(load_classifier(file))


def _of_classifier(classifier: Classifier) -> Predictor:
    return Predictor(classifier.class_names, classifier.preprocess, classifier.eval())


def _read_open_clip(file: Path, class_names: Sequence[str] | None) -> Predictor:
    """An open_clip model with the tuned head, or a zero-shot one where names are given."""
    folder = file.parent
    if file.name != OPEN_CLIP or not (folder / "open_clip_config.json").is_file():
        raise InputError(
            f"Expected {OPEN_CLIP} with open_clip_config.json beside it, but got {file}."
        )
    spec = json.loads(_texts(file).get(KEY, "{}")).get("classifier", {})
    names = class_names or spec.get("class_names")
    if not names:
        raise InputError(f"Expected class names for {folder}, which has none; give --class_names.")
    tuned = class_names is None and (folder / HEAD).is_file()
    head: Any = spec["head"] if tuned else "zero_shot"
    classifier = OpenClipClassifier(str(folder), None, names, spec.get("templates"), head)
    if tuned:
        classifier.head.load_state_dict(read_tensors(folder / HEAD))
    return _of_classifier(classifier)


def _read_timm(file: Path, class_names: Sequence[str] | None) -> Predictor:
    """A timm model by its config.json, or by what the file's header says."""
    import timm
    from timm.data import resolve_model_data_config
    from timm.models import load_checkpoint

    facts = json.loads(_texts(file).get(KEY, "{}"))
    config = file.parent / "config.json"
    if config.is_file():
        stored = json.loads(config.read_text())
        net = timm.create_model(f"local-dir:{file.parent}", num_classes=stored["num_classes"])
        names = stored.get("label_names") or class_names
        data = resolve_model_data_config(net)
    elif facts:
        rebuilt = Classifier.rebuild(facts["classifier"])
        assert isinstance(rebuilt, TimmClassifier)
        net, names = native_timm(rebuilt)[0], rebuilt.class_names
        data = {**facts["classifier"], **facts["classifier"]["preprocess"]}
        data["input_size"] = (3, *data["size"])
    else:
        raise InputError(f"Expected timm's config.json beside {file}, but it is not there.")
    if not names:
        raise InputError(f"Expected class names for {file}, which has none; give --class_names.")
    load_checkpoint(net, file)
    net.eval()
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    preprocess = Preprocess(tuple(data["input_size"][1:]), data["crop_pct"], data["interpolation"])
    return Predictor(tuple(names), preprocess, lambda images: net((images - mean) / std))


def _read_onnx(file: Path, class_names: Sequence[str] | None) -> Predictor:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "Expected onnxruntime to be installed: pip install 'cfmask[export]'."
        ) from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map.get(KEY, "")

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return _by_facts(facts, file, logits)


def _read_torch_export(file: Path, class_names: Sequence[str] | None) -> Predictor:
    texts = {f"{KEY}.json": ""}
    module = torch.export.load(file, extra_files=texts).module()
    return _by_facts(texts[f"{KEY}.json"], file, module)


def _by_facts(facts: str, file: Path, logits: Callable[[Tensor], Tensor]) -> Predictor:
    """Predictor of a file that normalises by itself and carries its provenance."""
    if not facts:
        raise InputError(f"Expected a file written by cfmask export, but {file} has no {FILE}.")
    spec = json.loads(facts)["classifier"]
    preprocess = Preprocess(**{**spec["preprocess"], "size": tuple(spec["preprocess"]["size"])})
    return Predictor(tuple(spec["class_names"]), preprocess, logits)


# Name of the format -> what opens it.
READERS: dict[str, Callable[[Path, Sequence[str] | None], Predictor]] = {
    "safetensors": _read_own,
    "open_clip": _read_open_clip,
    "timm": _read_timm,
    "onnx": _read_onnx,
    "torch_export": _read_torch_export,
}
