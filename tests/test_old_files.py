"""Files that older versions wrote, as `make.py` beside them says."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from support.old_files import OLD
from support.training import fails

from cfmask import ShiftReport, load_classifier
from cfmask.commands.train_model import train


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A copy of the files, unpacked. Tests only read it."""
    folder = tmp_path_factory.mktemp("old") / "v0.1"
    shutil.copytree(OLD, folder)
    packed = folder / "timm.safetensors.xz"
    (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("openclip.safetensors", "openclip.safetensors"),
        ("timm.safetensors", "timm.safetensors"),
        ("run", "run"),
        ("run/checkpoints/last.ckpt", "run"),
    ],
)
@torch.no_grad()
def test_a_classifier_of_an_older_version_gives_the_logits_that_it_gave_there(old, path, like):
    classifier = load_classifier(old / path)
    images = torch.rand(2, 3, *classifier.image_size, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(json.loads((old / "logits.json").read_text())[like])
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)


def test_a_finished_run_of_an_older_version_reports_again(old, tmp_path, monkeypatch):
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    weights = Path("run/weights.safetensors").read_bytes()
    before = ShiftReport.load("run/report.json")
    report = train(["--config=run/config.yaml", "--run=run"])
    assert [(r.model, r.value) for r in report.rows if r.metric == "accuracy"] == [
        (r.model, r.value) for r in before.rows if r.metric == "accuracy"
    ]
    assert Path("run/weights.safetensors").read_bytes() == weights


def test_an_unfinished_run_of_an_older_version_goes_on_to_its_weights(
    old, tmp_path, monkeypatch, capsys
):
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, *load_classifier("run").image_size)
    logits = load_classifier("run")(images)
    for file in ("weights.safetensors", "checkpoints/last.ckpt"):
        Path("run", file).unlink()
    again = ["--config=run/config.yaml", "--run=run", "--resume=true"]
    assert "model.init_args.lr is 3e-05 there" in fails(capsys, *again, "--model.lr=1e-4")
    line = fails(capsys, *again, "--model.cycle_momentum=true")
    assert "another config (model.init_args.cycle_momentum is False there and True here)" in line
    train(again)
    torch.testing.assert_close(load_classifier("run")(images), logits, atol=1e-3, rtol=1e-3)
