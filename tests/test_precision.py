from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from support.evaluation import models, painted
from support.training import DEMO, FAST

from cfmask import evaluate
from cfmask.commands.train_model import command_line
from cfmask.precision import bf16_unit, settled
from cfmask.runs.run_folder import RunFolder
from cfmask.runs.trainer import Trainer

PROBES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
OLD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LIMITS = (*OLD, "DNNL_MAX_CPU_ISA")


@pytest.fixture
def new_x86(monkeypatch):
    """A processor with everything, whatever this one is."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for probe in PROBES:
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)


def test_bf16_needs_instructions_that_may_be_used(new_x86, monkeypatch):
    assert bf16_unit("cpu") == "AMX"
    monkeypatch.setattr(torch.cpu, PROBES[0], lambda: False)
    assert bf16_unit("cpu") == "AVX512-BF16"
    for limit, unit in (("AVX512_CORE_VNNI", None), ("AVX512_CORE_BF16", "AVX512-BF16")):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert bf16_unit("cpu") == unit
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, PROBES[1], lambda: False)
    assert bf16_unit("cpu") is None


@pytest.mark.parametrize("seen", ["AVX2", "DEFAULT"])
def test_an_older_processor_has_none(new_x86, monkeypatch, seen):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: seen)
    assert bf16_unit("cpu") is None


def test_arm_is_asked_for_its_own_instructions(new_x86, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert bf16_unit("cpu") == "Arm BF16"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert bf16_unit("cpu") is None


def test_a_gpu_that_emulates_bf16_has_none(monkeypatch):
    # An older GPU: torch says yes, since it emulates.
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    assert bf16_unit("cuda") is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert bf16_unit("cuda") == "A GPU"
    assert bf16_unit("xla") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what a processor has")
@pytest.mark.skipif(any(name in os.environ for name in LIMITS), reason="imitates another one")
def test_the_processor_of_this_machine_is_known():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    fast = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    assert (bf16_unit("cpu") is not None) == fast


@pytest.mark.slow
def test_an_imitated_processor_is_believed():
    code = "from cfmask.precision import bf16_unit; print(bf16_unit('cpu'))"
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, **OLD}, stdout=-1)
    assert said.stdout.split() == [b"None"]


@pytest.mark.slow
def test_bf16_is_taken_where_it_is_faster():
    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.rand(2, 768, 768).to(dtype)
        left @ right
        began = time.thread_time()
        for _ in range(20):
            left @ right
        return time.thread_time() - began

    assert (seconds(torch.bfloat16) < seconds(torch.float32)) == (bf16_unit("cpu") is not None)


@pytest.fixture(params=[None, "AMX"])
def unit(request, monkeypatch):
    """What this machine's processor is said to have."""
    for module in ("cfmask.precision", "cfmask.runs.trainer"):
        monkeypatch.setattr(f"{module}.bf16_unit", lambda device: request.param)
    return request.param


def test_auto_is_settled_by_the_machine_and_names_by_nobody(unit):
    assert settled("auto", "cpu") == ("bf16" if unit else "fp32")
    assert (settled("bf16", "cpu"), settled("fp32", "cpu")) == ("bf16", "fp32")


def test_a_run_follows_the_machine_and_its_config_leaves_that_to_the_next(unit, tmp_path):
    options = [f"--run={tmp_path / 'run'}", "--trainer.precision=auto"]
    cli = command_line(["--config", DEMO, *options])
    assert cli.trainer.precision == ("bf16-mixed" if unit else "32-true")
    assert cli.trainer.why == ("auto: AMX" if unit else "auto: no instructions for bf16")
    assert yaml.safe_load(cli.config_text())["trainer"]["precision"] == "auto"


def test_the_demo_computes_alike_on_every_machine(unit, tmp_path):
    """Its table is the README's: training in bf16 moves single images to the other class."""
    cli = command_line(["--config", DEMO, f"--run={tmp_path / 'run'}"])
    settings = yaml.safe_load(cli.config_text())
    assert (cli.trainer.precision, settings["evaluation"]["precision"]) == ("32-true", "fp32")


def test_a_run_that_goes_on_keeps_its_precision(unit, tmp_path):
    folder = tmp_path / "run"
    start = ["--config", DEMO, f"--run={folder}", *FAST, "--trainer.precision=auto"]
    cli = command_line(start)
    with cli.folder.held():
        cli.folder.start(cli.config_text(), cli.model.classifier)
    (folder / "summary.json").write_text(json.dumps({"precision": "64-true"}))
    assert command_line([*start, "--resume"]).trainer.precision != "64-true"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    assert command_line([*start, "--resume"]).trainer.precision == "64-true"
    (folder / "summary.json").write_text("{")
    assert RunFolder(folder).precision() is None


def test_what_was_named_is_taken(unit):
    for name in ("32-true", "bf16-mixed"):
        trainer = Trainer(precision=name, accelerator="cpu", logger=False)
        assert (trainer.precision, trainer.why) == (name, "")


def test_the_protocol_says_what_auto_was(unit):
    report = evaluate(models(), [painted("x", 9)], precision="auto")
    assert report.protocol["precision"] == ("bf16" if unit else "fp32")
