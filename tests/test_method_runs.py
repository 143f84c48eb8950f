"""Runs of the methods by name: from the command to a model elsewhere, stopped on the way."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.small_methods import build, fit
from support.training import fails, run

from cfmask import ShiftReport, TimmClassifier, digits, load_classifier, names_in
from cfmask import methods as methods_package
from cfmask.checkpoint import AVERAGE, PRETRAINED, WEIGHTS
from cfmask.commands.main import main
from cfmask.exporting.reading import open_model
from cfmask.methods.towers import TextMethod

OWN = [
    name
    for name in names_in("methods")
    if not issubclass(getattr(methods_package, name), TextMethod)
]
ONE_EPOCH = ["--trainer.max_epochs=1", "--evaluation.pictures=0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_run_by_name_goes_on_reports_and_is_exported(name, tmp_path):
    options = [f"--method={name}", "--lr=1e-3", "--average=beta", *ONE_EPOCH]
    run(tmp_path / "whole", *options)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for file in (WEIGHTS, AVERAGE, "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (cut / file).unlink()
    run(cut, *options, "--resume=true")
    for file in (WEIGHTS, AVERAGE, PRETRAINED):
        one, other = load_file(tmp_path / "whole" / file), load_file(cut / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    models = set(ShiftReport.load(cut / "report.json").models)
    start = "pretrained" if name == "LPFT" else "zero-shot"
    assert models == {start, "tuned", "average", "WiSE-FT 0.5"}
    main(["export", str(cut), "--to=onnx", f"--out={tmp_path / 'onnx'}"])
    images = torch.rand(3, 3, 48, 48)
    expected = load_classifier(cut)(images).detach()
    got = open_model(str(tmp_path / "onnx")).logits(images)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OWN if name != "CLIPood"])
def test_a_mobile_cnn_is_tuned_by_each(name, tmp_path):
    cnn = TimmClassifier("efficientnet_lite0", False, digits.CLASS_NAMES, image_size=64)
    method = build(getattr(methods_package, name), cnn, lr=1e-3)
    before = {key: value.clone() for key, value in method.tuned().items()}
    trainer = fit(method, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    after = load_classifier(tmp_path / "x.ckpt").state_dict()
    assert before.keys() == after.keys()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())


def test_a_margin_of_names_needs_a_head_from_text(tmp_path, capsys):
    options = ["--method=CLIPood", "--model=timm:test_resnet/random", f"--run={tmp_path / 'run'}"]
    line = fails(capsys, "--config", "demo", *options)
    assert "made from text for CLIPood" in line and not (tmp_path / "run").exists()
