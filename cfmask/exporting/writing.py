"""Export: a run -> a folder that another tool opens.

An entry of `EXPORTERS` writes one format; a new format is one function and one entry, a reader in
`cfmask/exporting/reading.py`, and a way to load it in `cfmask/exporting/model_card.py`. Every
export is loaded back and compared with the classifier before its folder appears.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cfmask.checkpoint import (
    PRETRAINED,
    WEIGHTS,
    average,
    interpolate,
    load_classifier,
    save_classifier,
)
from cfmask.classifier import Classifier
from cfmask.errors import InputError, one_line, unknown
from cfmask.exporting.model_card import model_card
from cfmask.exporting.native import native_clip, native_timm
from cfmask.exporting.provenance import FILE, KEY, Provenance, describe
from cfmask.exporting.reading import HEAD, MAIN_FILES, ONNX, OPEN_CLIP, PT2, TIMM, open_model
from cfmask.families.openclip import OpenClipClassifier
from cfmask.families.pretrained import local_folder
from cfmask.families.timm import TimmClassifier
from cfmask.files import check_out, whole_folder, write_text, write_whole
from cfmask.weights import BROKEN

# Relative to the largest logit, or absolute where all logits are below 1.
TOLERANCE = 1e-4
# Arguments with which the format's tool builds the model from its name; None if it has no name.
Options = dict[str, Any] | None


def to_safetensors(classifier: Classifier, facts: str, folder: Path) -> Options:
    """Our own format: weights and spec in one file, as a run folder has it."""
    save_classifier(classifier, folder / WEIGHTS, {KEY: facts})
    return None


def to_open_clip(classifier: Classifier, facts: str, folder: Path) -> Options:
    """The local and Hub layout of open_clip: the tuned image tower in the CLIP it came from.

    The tuned head, which a CLIP has no place for, lies beside it in head.safetensors.
    """
    assert isinstance(classifier, OpenClipClassifier)
    clip, config = native_clip(classifier)
    _save(clip, folder / OPEN_CLIP, facts)
    _save(classifier.head, folder / HEAD, facts)
    write_text(folder / "open_clip_config.json", json.dumps(config, indent=2))
    local = local_folder(classifier.name)
    if local is not None:
        for vocabulary in local.glob("merges.txt.gz"):
            shutil.copy(vocabulary, folder)
        return None
    return {
        "force_image_size": config["preprocess_cfg"]["size"],
        "force_preprocess_cfg": {
            "mean": list(classifier.spec.mean),
            "std": list(classifier.spec.std),
        },
    }


def to_timm(classifier: Classifier, facts: str, folder: Path) -> Options:
    """The local and Hub layout of timm, with the head in its place."""
    from timm.models import save_for_hf

    assert isinstance(classifier, TimmClassifier)
    net, options = native_timm(classifier)
    spec = classifier.spec.preprocess.spec()
    images = {
        "input_size": [3, *spec["size"]],
        "crop_pct": spec["crop_pct"],
        "crop_mode": "center",
        "interpolation": spec["interpolation"],
        "mean": list(classifier.spec.mean),
        "std": list(classifier.spec.std),
    }
    config = {"pretrained_cfg": images, "label_names": list(classifier.class_names)}
    size = {name: value for name, value in options.items() if name == "img_size"}
    save_for_hf(net, str(folder), config, model_args=size, safe_serialization=True)
    # The same weights, with a header that makes the file whole without its config.json.
    _save(net, folder / TIMM, facts)
    return options


def to_onnx(classifier: Classifier, facts: str, folder: Path) -> Options:
    """ONNX: images float (B, 3, H, W) in [0, 1] -> logits (B, K), for any B."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        _need(library)
    # Its optimiser warns of every split that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = torch.onnx.export(
        classifier,
        (_example(classifier, 2),),
        dynamo=True,
        dynamic_shapes={"images": {0: "batch"}},
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    # What leaves the machine need not name the paths of its source files.
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.model.metadata_props[KEY] = facts
    program.save(folder / ONNX)
    return None


def to_torch_export(classifier: Classifier, facts: str, folder: Path) -> Options:
    """torch.export: the same function as for ONNX, as a .pt2 file."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        classifier, (_example(classifier, 2),), dynamic_shapes={"images": {0: batch}}
    )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, folder / PT2, extra_files={f"{KEY}.json": facts})
    return None


# Name of the format -> what writes a classifier and the text of its provenance into a folder.
EXPORTERS: dict[str, Callable[[Classifier, str, Path], Options]] = {
    "safetensors": to_safetensors,
    "open_clip": to_open_clip,
    "timm": to_timm,
    "onnx": to_onnx,
    "torch_export": to_torch_export,
}
# All that they write.
WRITTEN = {
    *MAIN_FILES.values(),
    *(HEAD, "open_clip_config.json", "merges.txt.gz", "config.json", f"{ONNX}.data"),
    *(FILE, "README.md"),
}
# The one family that a format is for; the others take all.
FAMILIES: dict[str, type[Classifier]] = {"open_clip": OpenClipClassifier, "timm": TimmClassifier}


def export(
    run: str,
    to: str,
    out: str,
    alpha: float | None = None,
    average: Sequence[str] = (),
    overwrite: bool = False,
    trust: bool = False,
) -> Provenance:
    """Write a run's model in another tool's format, load it back and compare.

    Args:
        run: run folder; a weights file will do where `alpha` is not given.
        to: format: `safetensors`, `open_clip`, `timm`, `onnx` or `torch_export`.
        out: folder to write, new or empty.
        alpha: WiSE-FT weight in [0, 1] of the tuned weights against the starting point.
        average: further runs of the same model; the mean of all their weights is exported.
        overwrite: replace an older export there.
        trust: import the classes that the weights name and that are not this package's.

    Returns:
        What was exported, as provenance.json has it.

    Raises:
        InputError: unknown format, a model that it is not for, weights that cannot be had or
            mixed, a folder of other files, a library that is not installed, or a file that does
            not agree with the model.
    """
    if to not in EXPORTERS:
        raise unknown("format", to, EXPORTERS)
    folder = Path(out)
    check_folder(folder, overwrite)
    runs = [Path(run), *map(Path, average)]
    if len(set(map(os.path.abspath, runs))) < len(runs):
        raise InputError(f"Expected each run once, but got {' '.join(map(str, runs))}.")
    classifier = _weights(runs, alpha, trust)
    _check_family(classifier, to)
    return write_export(classifier, describe(classifier, to, runs, alpha), out)


def write_export(classifier: Classifier, provenance: Provenance, out: str) -> Provenance:
    """Write a classifier in the format that its provenance names, load it back and compare.

    Args:
        classifier: in eval mode.
        provenance: what it is; how well the file agrees is filled in.
        out: the folder, which `check_folder` has passed; what is there is replaced when the new
            one is whole.

    Raises:
        InputError: see `export`.
    """
    with whole_folder(Path(out)) as unfinished:
        return _write(classifier, provenance, unfinished)


def push(folder: Path, repo: str, api: Any = None) -> str:
    """Upload an exported folder to the Hugging Face Hub; a new repository there is private.

    Args:
        folder: what `export` wrote.
        repo: `owner/name`.
        api: what talks to the Hub; `huggingface_hub.HfApi()` by default, with the login of
            `hf auth login`.

    Returns:
        Address of the repository.

    Raises:
        InputError: the Hub cannot be reached or refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    # The HTTP library of huggingface_hub differs between its versions, and so do its errors.
    unreachable: Any = HfHubHTTPError.__bases__
    try:
        address = str(api.create_repo(repo, private=True, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=str(folder))
    except BROKEN + unreachable as error:
        raise InputError(f"Cannot push {folder} to {repo}: {one_line(error)}") from error
    return address


def _weights(runs: Sequence[Path], alpha: float | None, trust: bool) -> Classifier:
    """The mean of the runs' weights, mixed with the first one's starting point."""
    classifier = average([load_classifier(run, trust=trust) for run in runs])
    if alpha is None:
        return classifier
    if not runs[0].is_dir():
        raise InputError(f"Expected a run folder to mix in its starting point, but got {runs[0]}.")
    return interpolate(load_classifier(runs[0], PRETRAINED, trust), classifier, alpha).eval()


def _write(classifier: Classifier, provenance: Provenance, folder: Path) -> Provenance:
    form = provenance.format
    images = _example(classifier, 3)
    # An error of the user's own model comes up here, as it is.
    with torch.no_grad():
        expected = classifier(images)
    try:
        options = EXPORTERS[form](classifier, provenance.text, folder)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"Cannot write {classifier.name} as {form}: {one_line(error)}") from error
    agreement = _agreement(classifier.name, images, expected, folder)
    provenance = replace(provenance, agreement=agreement)
    write_text(folder / FILE, provenance.text + "\n")
    write_text(folder / "README.md", model_card(provenance, options))
    return provenance


@torch.no_grad()
def _agreement(name: str, images: Tensor, expected: Tensor, folder: Path) -> str:
    """Load an export back; a sentence on how near its logits are, or an InputError."""
    got = open_model(folder, trusted=True).logits(images)
    largest = float(expected.abs().max())
    far = float((got - expected).abs().max())
    if not far <= TOLERANCE * max(1.0, largest):
        raise InputError(
            f"Expected the exported file to give the logits of {name}, but on made-up "
            f"images they differ by {far:.2g} of {largest:.2g}; use another format."
        )
    return (
        f"Loaded back, the file gave the model's own logits on {len(images)} made-up images to "
        f"{far:.1g}; the largest was {largest:.3g}."
    )


def _example(classifier: Classifier, count: int) -> Tensor:
    """Images float (count, 3, H, W) in [0, 1] with large and small structure."""
    height, width = classifier.image_size
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=rng)
    fine = torch.rand(count, 3, height, width, generator=rng)
    return 0.7 * nn.functional.interpolate(coarse, (height, width), mode="bilinear") + 0.3 * fine


def _save(module: nn.Module, path: Path, facts: str) -> None:
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in module.state_dict().items()}
    write_whole(path, lambda partial: save_file(tensors, partial, {"format": "pt", KEY: facts}))


def _check_family(classifier: Classifier, to: str) -> None:
    if not isinstance(classifier, FAMILIES.get(to, Classifier)):
        fit = [name for name in EXPORTERS if isinstance(classifier, FAMILIES.get(name, Classifier))]
        raise InputError(
            f"Expected a model of {to} for the format {to}, but {classifier.name} is a "
            f"{type(classifier).__name__}; formats for it: {', '.join(fit)}."
        )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but, with `overwrite`, an older export.

    Raises:
        InputError: it does, or it cannot be written to.
    """
    check_out(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / FILE).is_file():
        raise InputError(f"Expected a new or empty folder, but {folder} holds other files.")
    if not overwrite:
        raise InputError(f"{folder} holds an export; give another --out, or --overwrite true.")
    others = sorted({path.name for path in folder.iterdir()} - WRITTEN)
    if others:
        raise InputError(
            f"Expected nothing but an export to replace in {folder}, but it holds {others[0]} too; "
            "move it, or give another --out."
        )


def _need(library: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise InputError(
            f"Expected {library} to be installed for this format: pip install 'cfmask[export]'."
        ) from error
