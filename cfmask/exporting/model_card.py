"""Model card: README.md of an exported folder, with the header that the Hugging Face Hub reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cfmask.exporting.provenance import Provenance
from cfmask.reporting.escapes import fenced, markdown
from cfmask.reporting.tables import as_markdown

# Format -> the Hub's name of the library, and how it loads the file. `images` are float (B, 3, H,
# W) in [0, 1], `folder` is the path of the export.
LOADING: dict[str, tuple[str, str]] = {
    "safetensors": (
        "cfmask",
        """import cfmask

model = cfmask.load_classifier(folder)
logits = model(images)""",
    ),
    "open_clip": (
        "open_clip",
        """import open_clip
import torch
from safetensors.torch import load_file

clip = open_clip.create_model("local-dir:" + folder).eval()
mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({mean}, {std}))
features = clip.encode_image((images - mean) / std)
# The tuned head; the text tower is as it was before tuning.
head = load_file(folder + "/head.safetensors")
if {normalised}:
    features = torch.nn.functional.normalize(features, dim=-1)
logits = features @ head["weight"].T + head["bias"]""",
    ),
    "timm": (
        "timm",
        """import timm
import torch

model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({mean}, {std}))
logits = model((images - mean) / std)""",
    ),
    "onnx": (
        "onnx",
        """import onnxruntime
import torch

session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
logits = torch.from_numpy(session.run(["logits"], {{"images": images.numpy()}})[0])""",
    ),
    "torch_export": (
        "pytorch",
        """import torch

# Loading a .pt2 file can run code that is in it: load only what you trust.
model = torch.export.load(folder + "/model.pt2").module()
logits = model(images)""",
    ),
}
# The same file by the tool's other way in.
FROM_FILE = {
    "open_clip": "open_clip.create_model({model!r}, pretrained=folder + "
    '"/open_clip_model.safetensors", {options})',
    "timm": "timm.create_model({model!r}, checkpoint_path=folder + "
    '"/model.safetensors", {options})',
}


def model_card(provenance: Provenance, options: dict[str, Any] | None) -> str:
    """The text of a card.

    Args:
        provenance: what the model is.
        options: arguments with which the tool builds the model, beside its name; None if it knows
            no such name.
    """
    parts = [
        _header(provenance),
        _opening(provenance),
        "## Load\n\n" + _loading(provenance, options),
        "## Images\n\n" + _images(provenance.classifier),
        "## Classes\n\n" + ", ".join(map(markdown, provenance.classifier["class_names"])) + ".",
        "## Figures\n\n" + _figures(provenance),
        "## Provenance\n\n" + _origin(provenance),
    ]
    return "\n\n".join(parts) + "\n"


def _header(provenance: Provenance) -> str:
    """Metadata as YAML between dashes, made by the Hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    report = provenance.report
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=row.shift,
            dataset_name=row.shift,
            metric_type=row.metric,
            metric_value=row.value,
        )
        for row in (report.of("accuracy") if report else [])
        if row.model not in ("zero-shot", "pretrained")
    ]
    data = ModelCardData(
        library_name=LOADING[provenance.format][0],
        pipeline_tag="image-classification",
        tags=["cfmask", "robust-fine-tuning", "distribution-shift"],
        metrics=["accuracy"] if results else None,
        model_name=provenance.classifier["model"],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _opening(provenance: Provenance) -> str:
    spec = provenance.classifier
    head = "zero-shot" if spec["head"] == "zero_shot" else "linear"
    name = markdown(spec["model"])
    return (
        f"# {name}, {provenance.weights}\n\n"
        f"An image classifier of {len(spec['class_names'])} classes, fine-tuned with cfmask: the "
        f"encoder {name} with a {head} head. {provenance.agreement}\n\n"
        "The licence is that of the pretrained weights and of the training images; neither is "
        "known to the program that wrote this card."
    )


def _loading(provenance: Provenance, options: dict[str, Any] | None) -> str:
    spec = provenance.classifier
    values = {
        "mean": spec["mean"],
        "std": spec["std"],
        "normalised": spec["head"] == "zero_shot",
        "model": spec["model"],
        "options": ", ".join(f"{name}={value!r}" for name, value in (options or {}).items()),
    }
    code = LOADING[provenance.format][1].format(**values)
    size = ", ".join(map(str, spec["preprocess"]["size"]))
    text = (
        f"`folder` is this folder, `images` are float (B, 3, {size}) in [0, 1].\n\n"
        f"```python\n{code}\n```"
    )
    if options is not None:
        text += "\n\nOr from the weights file alone:\n\n```python\n"
        text += FROM_FILE[provenance.format].format(**values) + "\n```"
    return text + "\n\nOr: `cfmask predict FOLDER IMAGE...`"


def _images(spec: dict[str, Any]) -> str:
    height, width = spec["preprocess"]["size"]
    share = spec["preprocess"]["crop_pct"]
    return (
        f"RGB. Short side resized ({spec['preprocess']['interpolation']}, antialiased) so that the "
        f"central crop of {height} × {width} pixels keeps {100 * share:g} % of it; then minus mean "
        f"{spec['mean']}, by standard deviation {spec['std']}, of values in [0, 1]. ONNX, "
        "torch.export and cfmask normalise inside the model."
    )


def _figures(provenance: Provenance) -> str:
    if provenance.report is None:
        return "These weights have not been evaluated."
    report = replace(provenance.report, rows=provenance.report.of("accuracy"))
    means = report.protocol.get("means", {})
    notes = [
        f"- {markdown(name)}: of {', '.join(markdown(report.short(part)) for part in parts)}."
        for name, parts in means.items()
    ]
    notes.append("- Further metrics and the whole protocol stand in provenance.json.")
    return as_markdown(report) + "\n".join(notes)


def _origin(provenance: Provenance) -> str:
    lines = [f"- {name} {version}" for name, version in provenance.versions.items()]
    for run in provenance.runs:
        lines.append(f"\nRun {markdown(run['name'])}{_counts(run.get('training', {}))}")
        if "config" in run:
            lines.append("\n" + fenced(run["config"], "yaml"))
    return "\n".join(["Written by", "", *lines])


def _counts(training: dict[str, Any]) -> str:
    if not training:
        return ""
    return (
        f": {markdown(training['method'])} on {training['train_images']:,} training and "
        f"{training['val_images']:,} validation images of {training['classes']:,} classes, "
        f"{training['steps']:,} steps of {training['batch']:,}"
    )
