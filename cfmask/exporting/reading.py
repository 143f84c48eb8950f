"""Reading: a model in any exported format -> what predicts with it.

An entry of `READERS` opens one format. Files are data: weights are read with safetensors or
weights_only, so nothing is unpickled, no class is imported and no network is asked because of what
they say. A .pt2 file is a program, and is opened only if the caller trusts it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmask.checkpoint import WEIGHTS, load_classifier, rebuilt
from cfmask.classifier import Classifier
from cfmask.decoding import Picture
from cfmask.errors import InputError, one_line
from cfmask.exporting.native import native_timm
from cfmask.exporting.provenance import FILE, KEY
from cfmask.families.openclip import OpenClipClassifier
from cfmask.families.pretrained import check_local
from cfmask.families.timm import TimmClassifier
from cfmask.files import read_json
from cfmask.heads import empty_head
from cfmask.images import Preprocess, to_unit
from cfmask.internals import internal
from cfmask.spec import Spec, are_names
from cfmask.weights import BROKEN, load_weights, parsed, read_header, read_tensors

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


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Predictor:
    """A model ready to name the classes of pictures.

    Attributes:
        class_names: K names, in the order of the logits.
        preprocess: picture -> uint8 (3, H, W).
        logits: images float (B, 3, H, W) in [0, 1] -> float (B, K), without gradient.
        device: where it takes images.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    logits: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Probabilities float (B, K) of RGB pictures of any size; see `shares`."""
        return self.shares(torch.stack([self.preprocess(picture) for picture in pictures]))

    def to(self, device: torch.device) -> Predictor:
        """The same model on a device; programs (ONNX, .pt2) stay where they are."""
        if not isinstance(self.logits, Classifier | nn.Sequential):
            return self
        return replace(self, logits=self.logits.to(device), device=device)

    def shares(self, images: Tensor) -> Tensor:
        """Probabilities float (B, K), the softmax of the logits, in main memory.

        Args:
            images: uint8 (B, 3, H, W), preprocessed.

        Raises:
            InputError: the model gives other numbers than one for each image and class, or none.
        """
        with torch.no_grad():
            logits = self.logits(to_unit(images.to(self.device))).cpu()
        expected = (len(images), len(self.class_names))
        if tuple(logits.shape) != expected or not logits.isfinite().all():
            raise InputError(
                f"Expected finite logits {expected} for {expected[0]} pictures and {expected[1]} "
                f"classes, but the model gave {tuple(logits.shape)} or what is no number."
            )
        return logits.softmax(1)


def open_model(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    trusted: bool = False,
) -> Predictor:
    """Open a model by whatever tool its format is for.

    Args:
        path: a run folder, what `cfmask export` wrote, the weights file in it, a training
            checkpoint, or a folder in timm's or open_clip's Hub layout with safetensors weights.
        class_names: K names in place of the stored ones; an open_clip folder becomes a zero-shot
            classifier of them.
        trusted: True opens .pt2 files, which can execute code, imports the class that weights name
            and asks the network for the parts that an open_clip folder lacks.

    Raises:
        InputError: nothing there, an unknown or broken file, no class names, what needs trust, or a
            library that is not installed.
    """
    form, file = _recognise(Path(path))
    if form == "torch_export" and not trusted:
        raise InputError(
            f"Refused {file}: a .pt2 file can execute code when it is loaded; give --trust true if "
            "you know who made it, or export to another format."
        )
    return _named(READERS[form](file, class_names, trusted), class_names)


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
    texts = read_header(path)
    if "classifier" in texts:
        return "safetensors", path
    stored = _facts(texts, path).get("format")
    beside = "open_clip" if (path.parent / "open_clip_config.json").is_file() else "timm"
    return stored if stored in ("open_clip", "timm") else beside, path


def _facts(texts: dict[str, str], file: Path) -> dict[str, Any]:
    """The provenance among the texts that a file carries; empty if there is none."""
    facts = parsed(texts.get(KEY) or "{}", file)
    if not isinstance(facts, dict):
        raise InputError(f"Expected the provenance in {file} by name, but got a {type(facts)}.")
    return facts


@contextlib.contextmanager
def _one_line(file: Path, *errors: type[Exception]) -> Iterator[None]:
    """Errors of a library that reads a broken or foreign file are one line; ours stay."""
    try:
        yield
    except InputError:
        raise
    except BROKEN + errors as error:
        raise InputError(f"Cannot read {file}: {one_line(error)}") from error


def _read_own(file: Path, class_names: Sequence[str] | None, trusted: bool) -> Predictor:
    return _of_classifier(load_classifier(file, trust=trusted))


def _of_classifier(classifier: Classifier) -> Predictor:
    return Predictor(classifier.class_names, classifier.preprocess, classifier.eval())


def _read_open_clip(file: Path, class_names: Sequence[str] | None, trusted: bool) -> Predictor:
    """An open_clip model with the tuned head, or a zero-shot one where names are given."""
    folder = file.parent
    if file.name != OPEN_CLIP or not (folder / "open_clip_config.json").is_file():
        raise InputError(
            f"Expected {OPEN_CLIP} with open_clip_config.json beside it, but got {file}."
        )
    facts = _facts(read_header(file), file)
    spec = Spec.of(facts["classifier"]) if "classifier" in facts else None
    names = class_names or (spec.class_names if spec else None)
    if not names:
        raise InputError(f"Expected class names for {folder}, which has none; give --class_names.")
    tuned = spec is not None and class_names is None and (folder / HEAD).is_file()
    if not trusted:
        check_local(folder)
    templates = spec.options.get("templates") or None if spec else None
    # The tuned head replaces the one that is made here.
    kind: Any = "linear" if tuned else "zero_shot"
    classifier = OpenClipClassifier(str(folder), None, names, templates, kind)
    if tuned and spec is not None:
        classifier.head = empty_head(spec.head, len(names), classifier.spec.width)
        load_weights(classifier.head, read_tensors(folder / HEAD), folder / HEAD)
    return _of_classifier(classifier)


def _read_timm(file: Path, class_names: Sequence[str] | None, trusted: bool) -> Predictor:
    """A timm model by its config.json, or by what the file's header says."""
    import timm
    from timm.data import resolve_model_data_config
    from torchvision.transforms.v2 import Normalize

    facts = _facts(read_header(file), file)
    config = file.parent / "config.json"
    net: Any
    if config.is_file():
        stored = read_json(config)
        with _one_line(config):
            net = timm.create_model(f"local-dir:{file.parent}", num_classes=stored["num_classes"])
            data = resolve_model_data_config(net)
            size = data["input_size"][1:]
            preprocess = Preprocess((size[0], size[1]), data["crop_pct"], data["interpolation"])
            scale = [torch.tensor(data[key]).view(3).tolist() for key in ("mean", "std")]
            names = stored.get("label_names") or class_names
            if stored.get("label_names") and not are_names(names):
                raise ValueError("its label_names are no list of names")
    elif facts:
        classifier = rebuilt(facts.get("classifier"), file)
        if not isinstance(classifier, TimmClassifier):
            raise InputError(f"Expected a timm model in {file}, but got {classifier.name}.")
        net, names = native_timm(classifier)[0], classifier.class_names
        preprocess = classifier.preprocess
        scale = [list(classifier.spec.mean), list(classifier.spec.std)]
    else:
        raise InputError(f"Expected timm's config.json beside {file}, but it is not there.")
    if not names:
        raise InputError(f"Expected class names for {file}, which has none; give --class_names.")
    load_weights(net, read_tensors(file), file)
    model = nn.Sequential(Normalize(*scale), net).eval()
    return Predictor(tuple(names), preprocess, model)


def _read_onnx(file: Path, class_names: Sequence[str] | None, trusted: bool) -> Predictor:
    try:
        import onnxruntime  # type: ignore[import-untyped]
        from onnxruntime.capi import (  # type: ignore[import-untyped]
            onnxruntime_pybind11_state as state,
        )
    except ImportError as error:
        raise InputError(
            "Expected onnxruntime to be installed: pip install 'cfmask[export]'."
        ) from error
    # Some builds of it tell its maker of their use.
    onnxruntime.disable_telemetry_events()
    # They have no common base.
    kinds = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    with _one_line(file, *kinds):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map

    def logits(images: Tensor) -> Tensor:
        with _one_line(file, *kinds):
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return _by_facts(texts, file, logits)


def _read_torch_export(file: Path, class_names: Sequence[str] | None, trusted: bool) -> Predictor:
    texts = {f"{KEY}.json": ""}
    with _one_line(file, internal("export_violation")):
        module = torch.export.load(file, extra_files=texts).module()
    return _by_facts({KEY: texts[f"{KEY}.json"]}, file, module)


def _by_facts(texts: dict[str, str], file: Path, logits: Callable[[Tensor], Tensor]) -> Predictor:
    """Predictor of a file that normalises by itself and carries its provenance."""
    facts = _facts(texts, file)
    if not facts:
        raise InputError(f"Expected a file written by cfmask export, but {file} has no {FILE}.")
    spec = Spec.of(facts.get("classifier"))
    return Predictor(spec.class_names, spec.preprocess, logits)


# Name of the format -> what opens it; the last argument is whether the file is trusted.
READERS: dict[str, Callable[[Path, Sequence[str] | None, bool], Predictor]] = {
    "safetensors": _read_own,
    "open_clip": _read_open_clip,
    "timm": _read_timm,
    "onnx": _read_onnx,
    "torch_export": _read_torch_export,
}
