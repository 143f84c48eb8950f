"""Small trainings: commands, folders of photographs, and the line in which one fails."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from PIL import Image

from cfmask.commands.train_model import train
from support.mortal import Death, train_in_child

# The demo without the plain run beside it, which takes as long again, and a short curve.
_FOLDER = TemporaryDirectory()
DEMO = str(Path(_FOLDER.name) / "demo.yaml")
CONFIGS = Path(__file__).parents[2] / "configs"
_settings = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
_settings["evaluation"]["wise"] = "0.5"
Path(DEMO).write_text(yaml.safe_dump({**_settings, "baseline": False}))


FAST = [
    "--trainer.max_epochs=2",
    "--trainer.precision=32-true",
    "--data.train_images=48",
    "--data.val_images=20",
    "--data.batch_size=16",
    "--evaluation.images=20",
]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as end:
        train(list(args))
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def photos(root: Path) -> Path:
    """A made-up folder of pictures in all formats that people have."""
    rng = np.random.default_rng(0)
    tint = {"lemon": (230, 220, 40), "lime": (60, 200, 60), "red_plum": (120, 20, 60)}
    for part, count in {"train": 10, "test": 4, "sketches": 4}.items():
        for name, colour in tint.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 25, (40 + 3 * i, 60, 3)) + np.array(colour)
                image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                path = root / part / name / f"{i}.jpg"
                if i == 0:
                    image.convert("L").save(path)
                elif i == 1:
                    image.quantize(16).save(path.with_suffix(".png"))
                elif i == 2:
                    image.convert("CMYK").save(path)
                elif i == 3:
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    image.save(path, exif=exif)
                elif i == 4:
                    deep = np.asarray(image.convert("L")).astype(np.uint16) * 256
                    Image.fromarray(deep).save(path.with_suffix(".png"))
                else:
                    image.save(path)
    return root


FOLDER = [
    "--config",
    str(CONFIGS / "folder.yaml"),
    "--model.classifier.model=tiny-clip",
    "--model.classifier.pretrained=null",
    "--data.workers=0",
    "--data.batch_size=8",
    "--evaluation.workers=0",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
]


# Six steps an epoch; masks and donors by chance.
SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
    "--data.train_images=48",
    "--data.val_images=20",
    "--data.batch_size=8",
    "--model.counterfactual.mask=RandomMask",
    "--model.counterfactual.fill=MultiFill",
    "--evaluation.shifts=[digits/id]",
    "--evaluation.images=20",
    "--checkpoints.every_steps=2",
]


STEP = "cfmask.methods:Method.training_step"


def arguments(folder: Path, *options: str) -> list[str]:
    return ["--config", DEMO, f"--run={folder}", *SMALL, *options]


def run(folder: Path, *options: str) -> None:
    train(arguments(folder, *options))


def dies(folder: Path, where: str, call: int, *options: str) -> int:
    """Exit code of a run that is killed at the n-th call of a function."""
    return train_in_child(arguments(folder, *options), Death(where, call))
