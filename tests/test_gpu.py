"""What a GPU computes is what a CPU does.

The same functions run on both; on a CPU they compare single precision with double.
"""

from __future__ import annotations

import copy
import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from support.training import DEMO, FAST, fails

from cfmask import (
    AttentionRelevance,
    BlurFill,
    ConstantFill,
    ContextMask,
    Counterfactual,
    DigitsData,
    Distillation,
    FineTuning,
    GradCAM,
    LinearProbe,
    MaskedDistillation,
    MultiFill,
    NoFill,
    ObjectMask,
    OpenClipClassifier,
    RandomMask,
    SingleFill,
    evaluate,
    load_classifier,
)
from cfmask.checkpoint import save_classifier
from cfmask.commands.train_model import train
from cfmask.precision import tf32
from cfmask.runs.cost import forward_cost, memory
from cfmask.runs.resume import Position
from cfmask.runs.trainer import Trainer
from cfmask.shift import Request
from cfmask.shifts.digits_world import digits_shifts

ROOT = Path(__file__).parents[1]
gpu = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
# Largest relative difference of loss and gradient norm from the step in double precision.
PRECISIONS = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 5e-2, "fp16": 2e-2}
OBJECT = Counterfactual(ObjectMask(0.3), ConstantFill())


def cases(precisions):
    """Precision and device: a CPU has fp32 alone."""
    return [("fp32", "cpu"), *(pytest.param(name, "cuda", marks=gpu) for name in precisions)]


def methods(classifier, **options):
    """Every method without chance."""
    kinds = {kind.__name__: kind for kind in (FineTuning, LinearProbe, Distillation)}
    found = {name: kind(copy.deepcopy(classifier)) for name, kind in kinds.items()}
    found["MaskedDistillation"] = MaskedDistillation(copy.deepcopy(classifier), OBJECT, **options)
    for method in found.values():
        method.log = method.log_dict = lambda *args, **kwargs: None
        for teacher in method.copies():
            # Away from the student, or nothing is to be learnt from it.
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in teacher.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return found


def step(method, batch, device="cpu", precision="fp64"):
    """Loss and norm of the gradient of one step, as float."""
    images, labels = batch
    method = copy.deepcopy(method).to(device)
    if precision == "fp64":
        method, images = method.double(), images.double()
    for module in (method.classifier, *method.copies()):
        module.suit(torch.device(device))
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16" and device == "cuda")
    with tf32(precision == "tf32"):
        with torch.autocast(device, reduced, enabled=reduced is not None):
            loss = method.training_step((images.to(device), labels.to(device)), 0)
        scaler.scale(loss).backward()
    scale = scaler.get_scale()
    given = [p.grad / scale for p in method.parameters() if p.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(given).item()


@pytest.mark.parametrize(("precision", "device"), cases(PRECISIONS))
@pytest.mark.parametrize(
    "name", ["FineTuning", "LinearProbe", "Distillation", "MaskedDistillation"]
)
def test_a_step_is_that_of_the_cpu_in_double(tiny_clip, digit_batch, name, precision, device):
    method = methods(tiny_clip)[name]
    want, got = step(method, digit_batch), step(method, digit_batch, device, precision)
    assert got == pytest.approx(want, rel=PRECISIONS[precision])


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_a_cnn_is_that_of_the_cpu_in_double(small_cnn, device):
    torch.manual_seed(0)
    batch = torch.rand(4, 3, 96, 96), torch.tensor([0, 1, 2, 0])
    method = methods(small_cnn)["MaskedDistillation"]
    assert step(method, batch, device, "fp32") == pytest.approx(step(method, batch), rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_relevance_and_removed_patches_are_those_of_the_cpu(
    tiny_clip, small_cnn, digit_batch, device
):
    torch.manual_seed(0)
    batches = digit_batch, (torch.rand(4, 3, 96, 96), torch.tensor([0, 1, 2, 0]))
    for classifier, relevance, (images, labels) in (
        (tiny_clip, AttentionRelevance(), batches[0]),
        (tiny_clip, GradCAM(), batches[0]),
        (small_cnn, GradCAM(), batches[1]),
    ):
        hidden = torch.rand(len(images), *classifier.grid) < 0.5
        exact = copy.deepcopy(classifier).double()
        twin = copy.deepcopy(classifier).to(device)
        twin.suit(torch.device(device))
        want = relevance.explain(exact, images.double(), labels)[1]
        got = relevance.explain(twin, images.to(device), labels.to(device))[1]
        assert (got.cpu() - want).abs().max() < 1e-3
        with torch.no_grad():
            want = exact.features(images.double(), hidden)
            got = twin.features(images.to(device), hidden.to(device))
        assert torch.allclose(got.cpu().double(), want, atol=1e-3 * want.abs().max())


@pytest.mark.parametrize("device", DEVICES)
def test_masks_and_fills_take_what_they_say(digit_batch, device):
    images, _ = digit_batch
    torch.manual_seed(0)
    relevance = torch.rand(8, 6, 6)
    there, maps = images.to(device), relevance.to(device)
    for mask in (ObjectMask(0.3), ContextMask(0.5)):
        assert torch.equal(mask(maps).cpu(), mask(relevance))
    kept = (~RandomMask(0.75, exact=True)(maps)).flatten(1).sum(1)
    assert kept.tolist() == [9] * 8
    replaced = ObjectMask(0.3)(relevance)
    for fill in (ConstantFill(), BlurFill(), NoFill()):
        got = fill(there, replaced.to(device)).cpu()
        assert torch.allclose(got, fill(images, replaced), atol=1e-5)
    whole = torch.ones(8, 6, 6, dtype=torch.bool)
    single = SingleFill()(there, whole.to(device)).cpu()
    donors = (single[:, None] == images[None]).flatten(2).all(2)
    assert torch.equal(donors.sum(0), torch.ones(8).long()) and not donors.diagonal().any()
    own = (MultiFill()(there, whole.to(device)).cpu() == images).all(1)
    assert not own.unflatten(2, (6, 8)).unflatten(1, (6, 8)).all(4).all(2).any()


@pytest.mark.parametrize(("precision", "device"), cases(["fp32", "bf16"]))
def test_an_evaluation_counts_what_the_cpu_does(tiny_clip, precision, device):
    request = Request(class_names=tiny_clip.class_names, images=200)
    shift = next(one for one in digits_shifts(request) if one.name == "counter")
    exact = evaluate({"m": copy.deepcopy(tiny_clip)}, [shift])
    there = evaluate({"m": tiny_clip.to(device)}, [shift], batch_size=64, precision=precision)
    want, got = (
        [row.correct for row in report.rows if row.metric == "accuracy"]
        for report in (exact, there)
    )
    assert len(want) == len(got) > 0
    assert all(abs(a - b) <= (0 if precision == "fp32" else 2) for a, b in zip(want, got))


def fit(method, tmp_path, accelerator="gpu", steps=4, **options):
    """A short training."""
    trainer = Trainer(
        max_steps=steps, accelerator=accelerator, devices=1, logger=False, callbacks=[Position()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=0, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(method, DigitsData(64, 8, batch_size=8))
    return torch.cat([p.detach().cpu().flatten() for p in method.classifier.parameters()])


FORMS = {
    "compile": {"compile": True},
    "grad_checkpointing": {"grad_checkpointing": True},
    "bf16_teacher": {"bf16_teacher": True},
}


@gpu
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_step_give_the_same_weights(tiny_clip, tmp_path, form):
    start = torch.cat([p.detach().flatten() for p in tiny_clip.parameters()])
    plain, other = (
        fit(MaskedDistillation(copy.deepcopy(tiny_clip), OBJECT, lr=1e-4, **options), tmp_path)
        for options in ({}, FORMS[form])
    )
    assert (plain - other).norm() < 0.1 * (plain - start).norm()


@gpu
@pytest.mark.parametrize(("strategy", "options"), [("ddp", {}), ("fsdp", {"two_backwards": False})])
def test_one_device_of_several_trains_as_one_alone(tiny_clip, tmp_path, strategy, options):
    alone = fit(MaskedDistillation(copy.deepcopy(tiny_clip), OBJECT, **options), tmp_path)
    start = torch.cat([p.detach().flatten() for p in tiny_clip.parameters()])
    method = MaskedDistillation(copy.deepcopy(tiny_clip), OBJECT, **options)
    together = fit(method, tmp_path, strategy=strategy)
    if strategy == "fsdp":
        # The weights lie in one flat piece; that all steps were made is what can be seen.
        assert method.global_step == 4 and together.isfinite().all()
    else:
        assert (alone - together).norm() < 0.1 * (alone - start).norm()
    torch.distributed.destroy_process_group()


@gpu
def test_a_run_goes_on_and_is_exported(tmp_path):
    from cfmask.exporting.writing import export

    whole = tmp_path / "whole"
    options = ["--config", DEMO, *FAST, "--trainer.accelerator=gpu", "--checkpoints.every_steps=2"]
    train([*options, f"--run={whole}"])
    wanted = load_classifier(whole)
    for name in ("weights.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        (whole / name).unlink()
    train([*options, f"--run={whole}", "--resume"])
    again = load_classifier(whole).state_dict()
    for name, value in wanted.state_dict().items():
        assert torch.allclose(again[name], value, atol=1e-4), name
    export(str(whole), "safetensors", str(tmp_path / "exported"))


@gpu
def test_no_step_waits_for_the_gpu(tiny_clip, digit_batch):
    device = torch.device("cuda")
    images, labels = (x.to(device) for x in digit_batch)
    for method in methods(tiny_clip).values():
        method.to(device)
        # The first images are looked at, and kernels are chosen.
        method.training_step((images, labels), 0).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            method.training_step((images, labels), 1).backward()
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in method.parameters() if p.grad is not None]
            )
            method._watch.judge(1, norm)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_printed_memory_is_what_a_step_takes(tmp_path, precision):
    names = [str(k) for k in range(100)]
    method = FineTuning(OpenClipClassifier("ViT-B-32", None, names, head="linear"))
    estimate = sum(memory(method, 128, forward_cost(method.classifier, precision, "cuda")).values())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(
        max_steps=3, accelerator="gpu", devices=1, logger=False, precision=precision,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(method, DigitsData(3 * 128, 8, batch_size=128))
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate, rel=0.15)


@gpu
def test_too_little_memory_is_one_line(tmp_path, capsys):
    # What is left is less than a batch needs.
    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(free - 200_000_000, dtype=torch.uint8, device="cuda")
    options = ["--trainer.accelerator=gpu", "--data.train_images=4096", "--data.batch_size=2048"]
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *FAST, *options)
    del held
    assert "Out of memory on cuda" in line
    assert re.search(r"--data.batch_size=\d+", line)


@pytest.mark.slow
def test_the_benchmark_shows_its_form_on_a_cpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here it would be measured")
    out = tmp_path / "gpu.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    rows = {row["what"]: row for row in csv.DictReader(out.open())}
    assert list(rows) == [
        *("plain", "distilled", "masked", "open_clip and AdamW", "naive masked", "evaluation"),
        "loader, one core",
    ]
    rate, share = (
        {what: float(row[key]) for what, row in rows.items()}
        for key in ("images_a_second", "share")
    )
    assert min(rate.values()) > 0
    # Forward passes that each counts: there and back three, the teacher one, the relevance one.
    counted = {"plain": 3, "distilled": 4, "masked": 8, "naive masked": 8, "evaluation": 1}
    units = {what: share[what] / rate[what] / passes for what, passes in counted.items()}
    assert all(unit == pytest.approx(units["plain"], rel=1e-6) for unit in units.values())


@pytest.mark.slow
def test_the_naive_step_has_our_relevance(tiny_clip, digit_batch):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu import naive_relevance

    images, labels = digit_batch
    want = AttentionRelevance().explain(tiny_clip, images, labels)[1]
    assert (naive_relevance(tiny_clip, images, labels) - want).abs().max() < 1e-5


def test_weights_of_a_cnn_are_laid_out_for_a_gpu_and_nothing_else_changes(small_cnn, tmp_path):
    torch.manual_seed(0)
    batch = torch.rand(4, 3, 96, 96), torch.tensor([0, 1, 2, 0])
    method = methods(small_cnn)["MaskedDistillation"]
    want = step(method, batch, precision="fp64")
    for classifier in (method.classifier, method.teacher):
        classifier.suit(torch.device("cuda"))
    layer = method.classifier.encoder.conv1[0].weight
    assert layer.is_contiguous(memory_format=torch.channels_last) and not layer.is_contiguous()
    assert step(method, batch, precision="fp64") == pytest.approx(want, rel=1e-9)
    save_classifier(method.classifier, tmp_path / "x.safetensors")
    back = load_classifier(tmp_path / "x.safetensors").state_dict()
    assert all(torch.equal(back[k], v) for k, v in method.classifier.state_dict().items())


def test_an_optimiser_of_another_device_is_laid_out_as_the_weights_are(small_cnn):
    method = FineTuning(small_cnn)
    optimizer = torch.optim.AdamW(method.parameters())
    method.classifier(torch.rand(2, 3, 96, 96)).sum().backward()
    optimizer.step()
    method.classifier.suit(torch.device("cuda"))
    before = {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
    method._trainer = SimpleNamespace(optimizers=[optimizer])
    method.on_train_start()
    for weight, kept in optimizer.state.items():
        assert kept["exp_avg"].stride() == weight.stride()
        assert torch.equal(kept["exp_avg"], before[weight])


def test_tf32_is_for_the_time_of_a_training(monkeypatch):
    seen = []
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_: seen.append(precision_of_products()))
    precision_of_products = torch.get_float32_matmul_precision
    for device, wanted in (("cuda", True), ("cuda", False), ("cpu", True)):
        trainer = Trainer(accelerator="cpu", logger=False, tf32=wanted)
        trainer.strategy._root_device = torch.device(device)
        trainer.fit(None)
    assert seen == ["high", "highest", "highest"]
    assert precision_of_products() == "highest"


def test_without_a_gpu_the_script_runs_nothing():
    if torch.cuda.is_available():
        pytest.skip("here it would run")
    script = ["bash", str(ROOT / ".ci" / "gpu"), sys.executable]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["No GPU here: nothing was run."]
