"""Training steps on a device that is not there: ``python tests/support/absent_device.py``.

Tensors have shapes and a device, and no values: whatever has to know a value, or crosses between
the device and main memory, is an error. A process of its own, as autograd asks for devices once.

Prints a JSON object: what was raised, by case; empty if nothing was.
"""

from __future__ import annotations

import copy
import itertools
import json
import types
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import cfmask
from cfmask import (
    BlurFill,
    ConstantFill,
    ContextMask,
    Counterfactual,
    Distillation,
    FineTuning,
    LinearProbe,
    MaskedDistillation,
    MultiFill,
    NoFill,
    ObjectMask,
    OpenClipClassifier,
    RandomMask,
    ShuffleFill,
    SingleFill,
    TimmClassifier,
    digits,
)
from cfmask.images import to_unit
from cfmask.methods import Method

MASKS = {
    "object": ObjectMask(0.3),
    "context": ContextMask(0.5),
    "random": RandomMask(0.5),
    "exact": RandomMask(0.75, exact=True),
}
FILLS = [SingleFill(), MultiFill(), ConstantFill(), BlurFill(), ShuffleFill(), NoFill()]
DEVICE = "absent"


class Waits(RuntimeError):
    """The host would have to wait."""


class NoCopies(TorchDispatchMode):
    """Refuses copies between the device and main memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        copies = torch.ops.aten.copy_
        if func.overloadpacket in (torch.ops.aten._to_copy, copies):
            source = args[1 if func.overloadpacket is copies else 0]
            if source.device.type != out.device.type:
                raise Waits(f"a copy from {source.device} to {out.device}")
        return out


def register() -> None:
    """A device without hardware: autograd takes it for one of its own."""
    module = types.SimpleNamespace(
        is_available=lambda: False,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
        _is_in_bad_fork=lambda: True,
        manual_seed_all=lambda seed: None,
    )
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=module)


def absent(value: Tensor) -> Tensor:
    """A tensor of this shape on the device, without values."""
    return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)


def step(method: Method) -> None:
    """Forward and backward of one step on the device, as a trainer takes it."""

    def at_once(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()

    method.backward_now = at_once
    method.log = method.log_dict = lambda *args, **kwargs: None
    with FakeTensorMode():
        for module in method.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    module._parameters[key] = torch.nn.Parameter(absent(value), value.requires_grad)
            for key, value in module._buffers.items():
                if value is not None:
                    module._buffers[key] = absent(value)
        size = method.classifier.image_size
        images = torch.empty(4, 3, *size, dtype=torch.uint8, device=DEVICE)
        labels = torch.zeros(4, dtype=torch.int64, device=DEVICE)
        with NoCopies():
            loss = method.training_step((to_unit(images), labels), 0)
            loss.backward()
            given = [p.grad for p in method.parameters() if p.grad is not None]
            wrong = method._watch.judge(0, torch.nn.utils.get_total_norm(given))
            assert wrong.device.type == DEVICE and given


class Looking(FineTuning):
    """A method that looks at values."""

    look: Callable[[Tensor], object]

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        losses = super().losses(images, labels)
        self.look(losses["task"].detach())
        return losses


LOOKS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.item(),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "bool": lambda x: bool(x > 0),
    "index by a mask": lambda x: x[x > 0],
    "a list of numbers": lambda x: x.new_tensor([1.0, 2.0]),
    "a tensor of the host": lambda x: torch.arange(3).to(x),
}
FORMS = [
    {"relevance_of": "loss"},
    {"two_backwards": False, "distance": "relative_feature"},
    {"relevance": cfmask.AttentionRollout(), "distance": "logit"},
    {"relevance": cfmask.GradCAM(), "copies": 2},
    {"relevance": cfmask.HiResCAM(), "grad_checkpointing": True},
]


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Steps by what is to be seen in them."""
    clip = OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)

    def masked(model, pairs=(("object", FILLS[0]),), **options) -> None:
        makes = [Counterfactual(MASKS[mask], fill) for mask, fill in pairs]
        step(MaskedDistillation(copy.deepcopy(model), makes, **options))

    def looking(look) -> None:
        method = Looking(copy.deepcopy(clip))
        method.look = look
        step(method)

    for name, look in LOOKS.items():
        yield f"looks: {name}", lambda look=look: looking(look)
    for pair in itertools.product(MASKS, FILLS):
        yield f"{pair[0]}, {type(pair[1]).__name__}", lambda pair=pair: masked(clip, [pair])
    for kind in (FineTuning, Distillation, LinearProbe):
        yield kind.__name__, lambda kind=kind: step(kind(copy.deepcopy(clip)))
    for name in ("test_vit", "test_resnet"):
        model = TimmClassifier(name, False, ["a", "b"], image_size=64)
        # Layer masking wraps tensors, which cannot be wrapped without values.
        fills = FILLS[:1] if name == "test_resnet" else FILLS[-1:]
        for pair in itertools.product(MASKS, fills):
            yield f"{name}, {pair[0]}", lambda model=model, pair=pair: masked(model, [pair])
    for form in FORMS:
        name = ", ".join(f"{k} {getattr(v, 'passes', v)}" for k, v in form.items())
        yield name, lambda form=form: masked(clip, **form)


def raised(run: Callable[[], None]) -> str:
    """What a step raised, in one line."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    register()
    print(json.dumps({name: raised(run) for name, run in cases()}))
