"""What the recipes of configs/imagenet/ cost: ``python benchmarks/recipes.py``.

Counts FLOPs and memory of a step of every recipe with randomly initialised models of the real
size, and prints them as the table of docs/recipes.md. With `--update true` that table and the
memory lines of the recipes are brought up to date. Nothing here depends on the values of weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from exact_cost import exact_memory, step_cost
from jsonargparse import ArgumentParser, auto_cli

import cfmask.commands.train_model  # noqa: F401  (short names of classes are those of imported ones)
from cfmask.methods import Method

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "imagenet"
PAGE = ROOT / "docs" / "recipes.md"
MODELS = ("vit_b32", "vit_b16", "vit_l14", "rn50", "timm_vit_b16", "timm_resnet50")
FINE_TUNING = "fine-tuning"
GRAD_CAM = "object_single_gradcam"
FILES = {path.stem: path.read_text() for path in sorted((RECIPES / "methods").glob("*.yaml"))}
CLASSES = {stem: yaml.safe_load(text)["model"]["class_path"] for stem, text in FILES.items()}
# Of the other methods docs/methods.md says what they cost.
PAPERS = ("LinearProbe", "Distillation", "MaskedDistillation")
METHODS = (FINE_TUNING, *(stem for stem, kind in CLASSES.items() if kind in PAPERS))
IMAGES = 512
# Share of a GPU's memory that the count may fill; the rest is for what it leaves out.
USABLE = 0.85
GPUS = (24, 80)
COUNTED = (2, 34)


@dataclass(frozen=True)
class Cost:
    """What a recipe costs.

    Attributes:
        gflops: of a training step, an image.
        fixed: bytes on a device, whatever the batch.
        image: further bytes for each image on the device.
    """

    gflops: float
    fixed: float
    image: float

    def devices(self, gigabytes: int) -> int | None:
        """GPUs of this size for a step of 512 images at once; None if the model is too large."""
        free = USABLE * gigabytes * 1e9 - self.fixed
        counts = (2**k for k in range(10))
        return next((n for n in counts if IMAGES / n * self.image <= free), None)


def recipes(models: list[str]) -> list[tuple[str, str]]:
    """Models with the methods that are meant for them."""
    clip = [name for name in METHODS if name != GRAD_CAM]
    return [
        (model, method)
        for model in models
        for method in (clip if model.startswith("vit") else (FINE_TUNING, GRAD_CAM))
    ]


def build(model: str, method: str) -> Method:
    """The method of a recipe with random weights and a linear head, which costs the same."""
    settings = yaml.safe_load((RECIPES / f"{model}.yaml").read_text())["model"]
    classifier = settings["init_args"]["classifier"]["init_args"]
    classifier["pretrained"] = False if "timm" in model else None
    classifier["head"] = "linear"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    args = [f"--model={json.dumps(settings)}"]
    if method != FINE_TUNING:
        text = (RECIPES / "methods" / f"{method}.yaml").read_text()
        args.append(f"--model={json.dumps(yaml.safe_load(text)['model'])}")
    config = parser.parse_args(args)
    # As an argument they would be copied for each of them.
    config.model.init_args.classifier.init_args.class_names = ["x"] * 1000
    built: Method = parser.instantiate(config).model
    return built


def cost(model: str, method: str) -> Cost:
    """Counted on two batches; what lies between them is the cost of an image."""
    built = build(model, method)
    steps = [step_cost(built, images, "bf16-mixed", fused=True) for images in COUNTED]
    few, many = (
        sum(exact_memory(built, images, step).values()) for images, step in zip(COUNTED, steps)
    )
    image = (many - few) / (COUNTED[1] - COUNTED[0])
    return Cost(steps[0].flops / 1e9, few - COUNTED[0] * image, image)


def memory_line(costs: dict[str, Cost]) -> str:
    """What a recipe file says of its memory, for each of its models."""
    parts = (f"{model} {c.fixed / 1e9:.1f} + {c.image / 1e6:.0f}" for model, c in costs.items())
    return f"# Memory a GPU, GB + MB an image: {', '.join(parts)}."


def gpu_line(costs: dict[str, Cost]) -> str:
    """How many GPUs take the step of 512 images at once, for each of its models."""
    parts = [
        f"{'/'.join(str(c.devices(size) or '-') for c in costs.values())} of {size} GB"
        for size in GPUS
    ]
    return f"# GPUs for the {IMAGES} images of a step: {' or '.join(parts)}."


def table(costs: dict[tuple[str, str], Cost]) -> str:
    """The table of docs/recipes.md; methods of a model that cost the same share a row."""
    head = ["model", "method", "GFLOP an image", "memory a GPU", *(f"{g} GB GPUs" for g in GPUS)]
    rows: dict[tuple[str, str], list[str]] = {}
    for (model, method), c in costs.items():
        need = f"{c.fixed / 1e9:.1f} GB + {c.image / 1e6:.0f} MB an image"
        devices = " | ".join(str(c.devices(size) or "–") for size in GPUS)
        figures = f"{c.gflops:.1f} | {need} | {devices}"
        rows.setdefault((model, figures), []).append(method)
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    lines += [f"| {model} | {', '.join(m)} | {figures} |" for (model, figures), m in rows.items()]
    return "\n".join(lines) + "\n"


def write(costs: dict[tuple[str, str], Cost]) -> None:
    """Bring the table of the page and the lines of the recipes up to date."""
    page = PAGE.read_text()
    old = re.compile(r"\| model \| method \|.*?\n(?=\n)", re.S)
    PAGE.write_text(old.sub(lambda _: table(costs), page))
    for name in {*MODELS, *METHODS} - {FINE_TUNING}:
        file = RECIPES / f"{name}.yaml" if name in MODELS else RECIPES / "methods" / f"{name}.yaml"
        own = {m: c for (m, r), c in costs.items() if name == r or (name, FINE_TUNING) == (m, r)}
        lines = f"{memory_line(own)}\n{gpu_line(own)}\n"
        file.write_text(re.sub(r"(?m)^# Memory.*\n(# GPUs.*\n)?", lines, file.read_text()))


def main(models: list[str] = list(MODELS), update: bool = False) -> None:  # noqa: B006
    """Print the table.

    Args:
        models: those to count; all of them take some minutes.
        update: bring docs/recipes.md and the recipes up to date; only with all models.
    """
    known: dict[tuple[str, str], Cost] = {}
    costs = {}
    for model, method in recipes(models):
        # Which patches are chosen and where others come from costs nothing, and removed ones are
        # counted as if they were there.
        alike = re.sub("context", "object", re.sub("multi|none", "single", method))
        if (model, alike) not in known:
            known[model, alike] = cost(model, alike)
        costs[model, method] = known[model, alike]
    print(table(costs))
    if update:
        write(costs)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
