"""The files that CONTRIBUTING's table names are enough for a new part: a toy of each kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Kind -> file -> text at its end.
ADDED = {
    "method": {
        "cfmask/methods/toy.py": """
from cfmask.methods.base import Method

class ToyMethod(Method):
    def losses(self, images, labels):
        return {"task": self.task_loss(self.classifier(images), labels)}
""",
    },
    "mask or fill": {
        "cfmask/counterfactual.py": """
class ToyMask(PatchMask):
    def __call__(self, relevance):
        return relevance > 0.5

class ToyFill(Fill):
    def __call__(self, images, replaced):
        return images * 0
""",
    },
    "relevance": {
        "cfmask/relevance.py": """
class ToyRelevance(Relevance):
    def explain(self, classifier, images, labels):
        logits = classifier(images)
        return logits, torch.ones(len(images), *classifier.grid)
""",
    },
    "backbone family": {
        "cfmask/families/toy.py": """
from torch import nn
from cfmask.classifier import Classifier, Layout
from cfmask.images import Preprocess
from cfmask.spec import Spec

class ToyClassifier(Classifier):
    def __init__(self, class_names=(), width: int = 4) -> None:
        spec = Spec("toy", class_names, Preprocess((16, 16)), width=4)
        super().__init__(self.architecture(spec), nn.Linear(4, len(class_names)), spec)

    @classmethod
    def architecture(cls, spec):
        return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @classmethod
    def layout_of(cls, encoder, image_size):
        return Layout((4, 4), "0")
""",
        "cfmask/__init__.py": """
_HOME |= {"ToyClassifier": "cfmask.families.toy"}
__all__ += ["ToyClassifier"]
""",
    },
    "shift set": {
        "cfmask/shifts/toy.py": """
from dataclasses import replace
from cfmask.shifts.digits_world import digits_shifts

def toy_shifts(request):
    return [replace(digits_shifts(request)[0], name="easy")]
""",
        "cfmask/shifts/catalogue.py": """
from cfmask.shifts.toy import toy_shifts
SHIFTS |= {"toy": toy_shifts}
""",
    },
    "metric": {
        "cfmask/evaluation/metrics.py": """
def _toy(judged):
    return float(len(judged.answers))

METRICS |= {"toy": Metric("Images", _toy, "number of images", "", 1, 0)}
""",
    },
    "view": {
        "cfmask/views/toy.py": """
from cfmask.evaluation.metrics import Metric
from cfmask.views.view import View

class Toy(View):
    columns = {"same": Metric("Same answer to the same image")}

    def versions(self, images, numbers):
        yield images

    def measure(self, plain, versions):
        return {"same": versions[0].predicted == plain.predicted}
""",
        "cfmask/views/known_views.py": """
from cfmask.views.toy import Toy
VIEWS |= {"toy": Toy}
""",
    },
    "export": {
        "cfmask/exporting/writing.py": """
def to_toy(classifier, facts, folder):
    to_safetensors(classifier, facts, folder)
    (folder / MAIN_FILES["safetensors"]).rename(folder / "toy.safetensors")

EXPORTERS |= {"toy": to_toy}
""",
        "cfmask/exporting/reading.py": """
MAIN_FILES |= {"toy": "toy.safetensors"}
READERS |= {"toy": _read_own}
""",
        "cfmask/exporting/model_card.py": """
LOADING |= {"toy": LOADING["safetensors"]}
""",
    },
}
SCRIPT = """
from pathlib import Path
import torch
import cfmask
from cfmask.commands.main import main
from cfmask.counterfactual import ToyFill, ToyMask
from cfmask.exporting.reading import open_model
from cfmask.relevance import ToyRelevance

assert Path(cfmask.__file__).parent == Path.cwd() / "cfmask"
main([
    "train", "--model=cfmask.methods.toy.ToyMethod", "--trainer.max_epochs=1",
    "--model.classifier=cfmask.families.toy.ToyClassifier", "--trainer.accelerator=cpu",
    "--data=DigitsData", "--data.train_images=32", "--data.batch_size=16", "--data.val_images=10",
    "--evaluation.shifts=[toy/easy]", "--evaluation.views=[toy]", "--evaluation.images=20",
    "--evaluation.pictures=0", "--run=run",
])
report = cfmask.ShiftReport.load("run/report.json")
assert report.row("tuned", "toy/easy").total == 20
assert report.value("tuned", "toy/easy", "toy") == 20
assert report.row("tuned", "toy/easy", "toy/same").correct == 20
assert "Images" in Path("run/report.md").read_text()
main(["export", "run", "--to=toy", "--out=exported"])
classifier = cfmask.load_classifier("run")
assert type(classifier).__name__ == "ToyClassifier"
images = torch.rand(3, 3, 16, 16)
assert torch.equal(open_model("exported").logits(images), classifier(images).detach())
make = cfmask.Counterfactual(ToyMask(), ToyFill())
method = cfmask.MaskedDistillation(classifier, counterfactual=make, relevance=ToyRelevance())
losses = method.losses(images, torch.tensor([0, 1, 2]))
assert all(loss.isfinite() for loss in losses.values())
print("all parts work")
"""


def row_of(kind: str) -> str:
    (row,) = re.findall(rf"^\| {re.escape(kind)} \| (.*) \|$", TABLE, re.M)
    return row


def test_every_row_of_the_table_has_a_toy_in_the_files_that_it_names():
    kinds = re.findall(r"^\| (?!To add|---)(.*?) \|", TABLE.partition("## House")[0], re.M)
    assert set(kinds) == set(ADDED)
    for kind, files in ADDED.items():
        named = re.findall(r"`([\w/<>.]+\.py)`", row_of(kind))
        assert set(files) == {path.replace("<name>", "toy") for path in named}, kind


@pytest.mark.slow
def test_toys_of_all_kinds_work_in_a_copy_of_the_package(tmp_path):
    shutil.copytree(ROOT / "cfmask", tmp_path / "cfmask")
    for files in ADDED.values():
        for path, text in files.items():
            with (tmp_path / path).open("a", encoding="utf-8") as file:
                file.write(text)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all parts work\n")
