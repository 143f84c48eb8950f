from __future__ import annotations

import copy
import errno
import os
import re

import pytest
import pytorch_lightning as pl
import torch
from support.full_disk import WRITERS
from support.training import DEMO, FAST, fails

from cfmask import DigitsData, FineTuning, InputError, MaskedDistillation, load_classifier
from cfmask.commands.train_model import train
from cfmask.files import write_whole
from cfmask.runs.faults import smaller_batch
from cfmask.runs.resume import CheckpointFiles

STEPS = [*FAST, "--trainer.max_epochs=1", "--checkpoints.every_steps=1"]


class Spoilt(FineTuning):
    """Fine-tuning whose gradient, or loss, is not a number at some of its batches."""

    spoilt: tuple[int, ...] = ()
    loss_too = False

    def training_step(self, batch, index):
        self.now = index in self.spoilt
        before = [p.detach().clone() for p in self.classifier.parameters()]
        self.history.append(before)
        return super().training_step(batch, index)

    def losses(self, images, labels):
        losses = super().losses(images, labels)
        if self.now:
            # The root of zero is zero; its slope is infinite, and infinity times zero not a number.
            losses["root"] = (0 * self.classifier.encoder.proj).sqrt().sum()
            losses["log"] = losses["task"] * float("nan" if self.loss_too else 0)
        return losses


def fit(method: Spoilt, steps: int = 4, **options) -> pl.Trainer:
    method.history = []
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(method, DigitsData(train_images=32, val_images=4, batch_size=4))
    return trainer


def test_a_gradient_that_is_not_finite_stops_the_run(tiny_clip):
    method = Spoilt(tiny_clip)
    method.spoilt = (2,)
    with pytest.raises(InputError, match="gradient is not finite at step 2"):
        fit(method)
    assert all(torch.isfinite(p).all() for p in method.parameters())


@pytest.mark.parametrize("loss_too", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_skipped_changes_nothing(tiny_clip, loss_too, accumulate):
    method = Spoilt(tiny_clip)
    method.spoilt, method.loss_too, method.skip_nonfinite = (2,), loss_too, 1
    trainer = fit(
        method, 4 // accumulate, accumulate_grad_batches=accumulate, gradient_clip_val=1.0
    )
    same = [
        all(torch.equal(a, b) for a, b in zip(*pair))
        for pair in zip(method.history, method.history[1:])
    ]
    # A step of two batches is lost if one of them is spoilt.
    assert same == ([False, False, True] if accumulate == 1 else [True, False, True])
    assert method.skipped == 1
    states = trainer.optimizers[0].state.values()
    assert {int(state["step"]) for state in states} == {4 // accumulate - 1}
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_skipping_has_a_limit_and_the_count_is_kept(tiny_clip):
    method = Spoilt(tiny_clip)
    method.spoilt, method.skip_nonfinite = (0, 2, 3), 2
    with pytest.raises(InputError, match="step 3, and 2 such steps were allowed"):
        fit(method)
    checkpoint: dict = {}
    method.on_save_checkpoint(checkpoint)
    other = FineTuning(tiny_clip)
    other.on_load_checkpoint(checkpoint)
    assert other.skipped == method.skipped == 3


class Fused(Spoilt):
    """The same with the optimiser of a GPU, which leaves such steps out by itself."""

    def configure_optimizers(self):
        optimizers, schedules = super().configure_optimizers()
        optimizers[0].param_groups[0]["fused"] = True
        optimizers[0]._step_supports_amp_scaling = True
        return optimizers, schedules


@pytest.mark.parametrize("loss_too", [False, True])
def test_a_fused_optimiser_is_not_asked_at_every_step(tiny_clip, loss_too):
    methods = [kind(copy.deepcopy(tiny_clip)) for kind in (Spoilt, Fused)]
    for method in methods:
        method.spoilt, method.loss_too, method.skip_nonfinite = (1, 2), loss_too, 2
        trainer = fit(method, 5, gradient_clip_val=1.0)
        assert method.skipped == 2
        states = trainer.optimizers[0].state.values()
        assert {int(state["step"]) for state in states} == {3}
    first, second = (list(method.parameters()) for method in methods)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))
    same = [
        all(torch.equal(a, b) for a, b in zip(*pair))
        for pair in zip(methods[1].history, methods[1].history[1:])
    ]
    assert same == [False, True, True, False]


def test_what_a_fused_optimiser_left_out_stops_the_run_before_a_checkpoint(tiny_clip, tmp_path):
    method, last = Fused(tiny_clip), tmp_path / "last.ckpt"
    method.spoilt, method.loss_too = (2,), True

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step in (2, 4):
                trainer.save_checkpoint(last)

    with pytest.raises(InputError, match=r"loss is not finite at step 2 \(task \d.*log nan\)"):
        fit(method, 6, callbacks=[Saves()])
    # The run went on to step 4, and wrote nothing there.
    assert len(method.history) == 4
    assert torch.load(last, weights_only=True)["global_step"] == 2
    with pytest.raises(InputError, match="not finite at step 2"):
        method = Fused(tiny_clip)
        method.spoilt = (2,)
        fit(method, 5)
    assert len(method.history) == 5


def scarce(how: str):
    """A step that wants more memory than there is."""

    def step(self, batch, index):
        if how == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.empty(2**55)

    return step


@pytest.mark.parametrize("how", ["gpu", pytest.param("cpu", marks=pytest.mark.slow)])
def test_too_little_memory_is_one_line_whose_settings_work(tmp_path, capsys, monkeypatch, how):
    arguments = ["--config", DEMO, f"--run={tmp_path / 'run'}", *STEPS]
    with monkeypatch.context() as patch:
        patch.setattr(MaskedDistillation, "training_step", scarce(how))
        line = fails(capsys, *arguments)
    assert "Out of memory on cpu" in line
    options = re.findall(r"--[\w.]+=\w+", line)
    assert options[:2] == ["--data.batch_size=8", "--trainer.accumulate_grad_batches=2"]
    assert not (tmp_path / "run").exists()
    if how == "cpu":
        train([*arguments, *options])


@pytest.mark.parametrize(("available", "parts"), [(100e9, 2), (8e9, 8), (1e9, 128)])
def test_the_batch_that_fits_is_the_largest_by_halving(available, parts):
    memory = {"weights": 2e9, "gradients": 1e9, "AdamW": 1e9, "activations": 24e9, "images": 1e9}
    summary = {"memory": memory, "batch_per_device": 256, "accumulate": 3}
    text = smaller_batch(summary, int(available))
    assert f"--data.batch_size={256 // parts} " in text
    assert f"--trainer.accumulate_grad_batches={3 * parts} " in text
    needed = 4e9 + 25e9 / parts
    assert parts in (2, 128) or needed <= 0.9 * available < 4e9 + 25e9 / (parts / 2)
    assert f"{needed / 1e9:.2g} GB" in text


def test_another_error_is_not_taken_for_too_little_memory(tmp_path, monkeypatch):
    def broken(self, batch, index):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(MaskedDistillation, "training_step", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(["--config", DEMO, f"--run={tmp_path / 'run'}", *STEPS])


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path, capsys, monkeypatch):
    save, calls = torch.save, []

    def full(content, file, *rest):
        calls.append(file)
        if len(calls) == 3:
            file.write(bytes(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file, *rest)

    monkeypatch.setattr(torch, "save", full)
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *STEPS)
    assert "best.ckpt: [Errno 28] No space left on device" in line
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-000000001.ckpt", "step-000000002.ckpt"]
    for name in names:
        load_classifier(tmp_path / "run" / "checkpoints" / name)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_does_not_fit_leaves_the_older_file(tmp_path, one_megabyte, writer):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(InputError, match=r"Cannot write .*/x: .* MB are free there"):
        write_whole(path, WRITERS[writer])
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_a_checkpoint_is_read_back_as_it_was(tmp_path):
    content = {"a": torch.arange(5), "b": {"c": [1, "two"]}}
    CheckpointFiles().save_checkpoint(content, tmp_path / "new" / "x.ckpt")
    back = CheckpointFiles().load_checkpoint(tmp_path / "new" / "x.ckpt", weights_only=False)
    assert torch.equal(back["a"], content["a"])
    assert back["b"] == content["b"]
