"""A training step waits for its device nowhere, shown without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.absent_device import FILLS, LOOKS, MASKS, Looking
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cfmask import (
    L2SP,
    SPD,
    CLIPood,
    Counterfactual,
    Distillation,
    FineTuning,
    LinearProbe,
    MaskedDistillation,
    NoFill,
    ObjectMask,
    SingleFill,
)

SCRIPT = Path(__file__).parent / "support" / "absent_device.py"
FOUND = ("Waits", "DataDependentOutputException", "DynamicOutputShapeException")


@pytest.mark.slow
def test_no_step_waits_for_a_device_without_values():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    raised = json.loads(done.stdout.splitlines()[-1])
    looking = {name: error for name, error in raised.items() if name.startswith("looks: ")}
    assert {n: e for n, e in looking.items() if not e.startswith(FOUND)} == {}
    assert {n: e for n, e in raised.items() if e and n not in looking} == {}
    assert (len(looking), len(raised)) == (8, 48)


class NoLooks(TorchDispatchMode):
    """Refuses, of tensors with values, what has to know one of them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten, index = torch.ops.aten, args[1] if len(args) > 1 else ()
        looks = func.overloadpacket in (
            *(aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select),
        )
        by_mask = func is aten.index.Tensor and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in index
        )
        if looks or by_mask:
            raise RuntimeError(f"{func} looks")
        return func(*args, **(kwargs or {}))


class NoCalls(TorchFunctionMode):
    """Refuses the calls that bring values to the host without any operation that looks."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
            raise RuntimeError(f"{func} looks")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unchecked(monkeypatch):
    """On a CPU, where nothing waits, each batch is looked at for its range: here none is."""
    monkeypatch.setattr("cfmask.classifier.check_unit", lambda images, values: None)


def train_blind(method, images, labels):
    method.log = method.log_dict = lambda *args, **kwargs: None
    with NoLooks(), NoCalls():
        loss = method.training_step((images, labels), 0)
        loss.backward()
        given = [p.grad for p in method.classifier.parameters() if p.grad is not None]
        wrong = method._watch.judge(0, torch.nn.utils.get_total_norm(given))
    assert given and not wrong


def test_no_mask_and_fill_looks(tiny_clip, digit_batch, unchecked):
    makes = [Counterfactual(mask, fill) for mask, fill in zip([*MASKS.values()] * 2, FILLS)]
    exact = Counterfactual(MASKS["exact"], NoFill())
    train_blind(MaskedDistillation(tiny_clip, [*makes, exact]), *digit_batch)


@pytest.mark.parametrize("kind", [FineTuning, Distillation, LinearProbe, L2SP, SPD, CLIPood])
def test_no_method_looks(kind, tiny_clip, digit_batch, unchecked):
    train_blind(kind(tiny_clip), *digit_batch)


@pytest.mark.parametrize("fill", [SingleFill(), NoFill()], ids=["single", "none"])
def test_no_step_of_a_cnn_looks(small_cnn, unchecked, fill):
    method = MaskedDistillation(small_cnn, Counterfactual(ObjectMask(0.3), fill))
    train_blind(method, torch.rand(2, 3, 96, 96), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", [name for name in LOOKS if "a " not in name])
def test_a_step_that_looks_is_found(name, tiny_clip, digit_batch, unchecked):
    method = Looking(tiny_clip)
    method.look = LOOKS[name]
    with pytest.raises(RuntimeError, match="looks"):
        train_blind(method, *digit_batch)
