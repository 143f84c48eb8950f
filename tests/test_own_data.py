from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.checkpoints import clip_folder
from support.exported import digit_images, plant_run
from support.training import FOLDER, photos
from torchvision.transforms.functional import to_pil_image

from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.main import main
from cfmask.commands.train_model import train

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "train.py": train,
    "eval.py": evaluate_run,
}


def commands(name: str) -> list[str]:
    """The command lines of a page, in the order of the text."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("python ", "cfmask "))]


def run(line: str, *options: str) -> None:
    """Run a command of the docs, with what makes it small and offline."""
    program, name, *args = shlex.split(line)
    if program == "cfmask":
        main([name, *args, *options])
    else:
        PROGRAMS[name]([*args, *options])


def test_photographs_become_an_exported_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    photos(tmp_path / "photos")
    # A smaller CLIP than the one that ships, for the time that its graph takes.
    small = ["--model.classifier.model", clip_folder(tmp_path / "CLIP")]
    lines = commands("index.md")
    assert len(lines) == 7
    seen = []
    for line in lines:
        run(line, *([*FOLDER[2:], *small] if " train " in line else []))
        seen.append(capsys.readouterr().out)
    for text in seen[:2]:
        assert all(row in text for row in ("zero-shot", "tuned", "WiSE-FT 0.5"))
        assert all(column in text for column in ("test (ID)", "sketches"))
    for text in seen[2:4]:
        assert "Loaded back" in text
    assert all(name in seen[4] for name in ("lemon", "lime", "red plum"))
    (found,) = json.loads(seen[5])
    assert {row["name"] for row in found["classes"]} == {"lemon", "lime", "red plum"}
    assert "answers.csv: 12 pictures, 0 of which could not be read." in seen[6]
    card = (tmp_path / "exported" / "fruit-clip" / "README.md").read_text()
    assert "WiSE-FT 0.5" in card
    assert "MaskedDistillation on 27 training and 3 validation images of 3 classes" in card
    assert (tmp_path / "exported" / "fruit" / "model.onnx").is_file()


@pytest.fixture
def demo(tmp_path, monkeypatch) -> Path:
    """A folder with what the commands of docs/export.md take for granted."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("demo", "second", "third")):
        plant_run(tmp_path / "runs" / name, "tiny-clip", seed)
    shutil.copytree(ROOT / "cfmask" / "tiny_clip", tmp_path / "CLIP")
    to_pil_image(digit_images(48)[0]).save("digit.png")
    return tmp_path


def test_every_command_of_the_page_on_exports_runs(demo, capsys):
    # Those of merging run beside its other tests.
    lines = [line for line in commands("export.md") if not line.startswith("cfmask merge ")]
    assert len(lines) == 8
    for line in lines:
        # Writing ONNX takes seconds, and the page on one's own data does it too.
        run(line.replace("onnx", "safetensors"))
        text = capsys.readouterr().out
        assert "Loaded back" in text if line.startswith("cfmask export") else "digit.png" in text
    assert len(list((demo / "exported").iterdir())) == 3
