"""Layer masking, rule by rule: what carries a mask, what refuses to, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.masked_nets import Function, Wrapped, build, pixels
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cfmask.layer_masking import LayerMaskingError, masked_forward

# ---- single rules -------------------------------------------------------------------------------

ACTIVATIONS = [
    *(nn.ReLU(inplace=i) for i in (False, True)),
    *(nn.ReLU6(inplace=i) for i in (False, True)),
    *(nn.SiLU(inplace=i) for i in (False, True)),
    *(nn.Hardswish(inplace=i) for i in (False, True)),
    *(nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.Mish(), nn.ELU(), nn.SELU()),
    *(nn.CELU(), nn.LeakyReLU(), nn.PReLU(), nn.Softplus(), nn.Hardtanh(1, 2), nn.Dropout(0.5)),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=repr)
def test_activation_keeps_hidden_positions_empty(act: nn.Module) -> None:
    torch.manual_seed(9)
    images, hidden = torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4) < 0.5
    result = masked_forward(act.eval(), images, hidden)
    expected = act(images.clone()).masked_fill(pixels(hidden, 8, 8), 0)
    torch.testing.assert_close(result, expected)


AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.AdaptiveAvgPool2d(1),
    "average pool": nn.AvgPool2d((8, 6)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean by list": lambda x: torch.mean(x, [-1, -2])[:, :, None, None],
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None],
    "norm": lambda x: x.norm(p=1, dim=(2, 3), keepdim=True) / x.new_ones(x.shape[2:]).sum(),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_global_average_is_over_visible_positions(name: str) -> None:
    images, hidden = torch.rand(3, 3, 8, 6) + 1, torch.rand(3, 4, 3) < 0.5
    hidden[0], hidden[2] = False, True
    seen = ~pixels(hidden, 8, 6)
    counts = torch.full((3, 1), 48) if name == "norm" else seen.sum((2, 3)).clamp(min=1)
    result = masked_forward(Function(AVERAGES[name]), images, hidden)[:, :, 0, 0]
    torch.testing.assert_close(result, (images * seen).sum((2, 3)) / counts)


def test_smaller_averages_count_hidden_pixels_as_zero() -> None:
    images, hidden = torch.rand(1, 1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    hidden[0, 0, 0] = False
    result = masked_forward(nn.AvgPool2d(2), images, hidden)
    expected = torch.zeros(1, 1, 2, 2)
    expected[0, 0, 0, 0] = images[0, 0, 0, 0] / 4
    torch.testing.assert_close(result, expected)


def test_sums_hide_what_either_side_hides() -> None:
    """Also in place: what a shortcut adds to is the same object afterwards."""
    torch.manual_seed(15)
    conv = nn.Conv2d(3, 3, 3, padding=1)

    def join(x: Tensor) -> Tensor:
        shortcut, x = x, conv(x)
        x.add_(1)
        x += shortcut
        return x + 1

    images, hidden = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.5
    result = masked_forward(Function(join), images, hidden)
    covered = pixels(hidden, 8, 8)
    expected = masked_forward(conv, images, hidden) + 2 + images
    torch.testing.assert_close(result, expected.masked_fill(covered, 0))


@pytest.mark.parametrize("order", [1, -1])
def test_concatenation_hides_what_any_part_hides(order: int) -> None:
    torch.manual_seed(16)
    grow = nn.MaxPool2d(3, 1, 1)
    net = Function(lambda x: torch.cat([x, grow(x)][::order], dim=1))
    images, hidden = torch.rand(2, 3, 8, 8) + 1, torch.rand(2, 8, 8) < 0.5
    result = masked_forward(net, images, hidden)
    assert torch.equal(result == 0, pixels(hidden, 8, 8).expand_as(result))


def test_explicit_padding_is_the_padding_of_a_convolution() -> None:
    torch.manual_seed(10)
    conv, bare = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3)
    bare.load_state_dict(conv.state_dict())
    images, hidden = torch.randn(2, 3, 12, 8), torch.rand(2, 6, 4) < 0.7
    padded = masked_forward(nn.Sequential(nn.ZeroPad2d(1), bare), images, hidden)
    torch.testing.assert_close(padded, masked_forward(conv, images, hidden))
    same = nn.Conv2d(3, 4, 3, padding="same")
    same.load_state_dict(conv.state_dict())
    torch.testing.assert_close(masked_forward(same, images, hidden), padded)


def test_channel_shuffle_split_and_patch_flatten() -> None:
    torch.manual_seed(11)

    def shuffle(x: Tensor) -> Tensor:
        size = x.size()
        x = x.view(size[0], 2, -1, *size[2:]).transpose(1, 2).contiguous().view(size)
        left, right = x.chunk(2, dim=1)
        return torch.cat([right, left + 1], dim=1)

    images, hidden = torch.randn(2, 4, 6, 6), torch.rand(2, 3, 3) < 0.5
    covered = pixels(hidden, 6, 6)
    result = masked_forward(Function(shuffle), images, hidden)
    torch.testing.assert_close(result, shuffle(images).masked_fill(covered, 0))
    flat = masked_forward(nn.Flatten(), images, hidden)
    torch.testing.assert_close(flat, images.masked_fill(covered, 0).flatten(1))


def test_grid_need_not_be_square() -> None:
    torch.manual_seed(12)
    model, images = build("timm resnet18"), torch.randn(2, 3, 64, 96)
    hidden = torch.rand(2, 2, 6) < 0.5
    each = pixels(hidden, 64, 96)[:, 0]
    assert torch.equal(masked_forward(model, images, hidden), masked_forward(model, images, each))


# ---- errors and side effects --------------------------------------------------------------------


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


def unseen(x: Tensor) -> Tensor:
    """Call torch as a C++ extension does: round the dispatch of Python."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.relu()


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "fft_fft2": torch.fft.fft2,
    "einsum": lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(4)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "conv_transpose2d": nn.ConvTranspose2d(4, 4, 2),
    "instance_norm": nn.InstanceNorm2d(4),
    "layer_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (16, 16, 4)),
    "group_norm": nn.GroupNorm(2, 4),
    "linear": nn.Linear(16, 16),
    "mean": lambda x: x.mean(3, keepdim=True),
    "norm": lambda x: x.norm(),
    "cat": lambda x: torch.cat([x, x], dim=2),
    "chunk": lambda x: x.chunk(2, dim=3)[0],
    "transpose": lambda x: x.transpose(2, 3),
    "reshape": lambda x: x.reshape(2, 16, 8, 8),
    "div": lambda x: x / x,
    "add_": lambda x: x.new_zeros(x.shape).add_(x),
    "add": lambda x: x + x.permute(0, 2, 3, 1),
    "flip": lambda x: x.flip(3),
    "data": lambda x: x.data,
    "numpy": lambda x: x.detach().numpy(),
    "DoubleBackward": Double.apply,
}


@pytest.mark.parametrize("name", REFUSED)
def test_operation_without_rule_is_named_with_its_module(name: str) -> None:
    model = nn.ModuleDict({"inner": Wrapped(REFUSED[name])})
    model.forward = lambda x: model["inner"](x)  # type: ignore[method-assign]
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    with pytest.raises(LayerMaskingError, match=rf"{name}\b.*\(in module 'inner\.(middle|after)"):
        masked_forward(model, torch.randn(2, 3, 16, 16), hidden)


TO_RESULTS = {"through": lambda x: x, "sum": lambda x: x[0] + x[1], "pair": lambda x: (x, x)}


@pytest.mark.parametrize("name", TO_RESULTS)
def test_nothing_passes_unseen(name: str) -> None:
    then = TO_RESULTS[name]
    net = Function(lambda x: then(unseen(x)))
    with pytest.raises(LayerMaskingError, match="no tensor, or torch could not follow"):
        masked_forward(net, torch.randn(2, 3, 8, 8), torch.zeros(2, 4, 4, dtype=torch.bool))
    mixed = Function(lambda x: x + unseen(x))
    with pytest.raises(LayerMaskingError, match="code torch could not follow"):
        masked_forward(mixed, torch.randn(2, 3, 8, 8), torch.zeros(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("images", "hidden"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, dtype=torch.bool)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 5, dtype=torch.bool)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 0, 4, dtype=torch.bool)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 4, 4, dtype=torch.bool)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 4)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 4, 4, dtype=torch.bool)),
        (torch.zeros(3, 8, 8), torch.zeros(3, 4, 4, dtype=torch.bool)),
    ],
)
def test_wrong_arguments_are_value_errors(images: Tensor, hidden: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected .* but got "):
        masked_forward(nn.Identity(), images, hidden)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything a module holds, except parameters and buffers, which state() compares."""
    skipped = ("_parameters", "_buffers", "_modules")
    return [
        {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items() if k not in skipped}
        for m in model.modules()
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", [F.silu, torch.fft.fft2], ids=["success", "error"])
def test_model_and_images_are_left_as_they_were(function: Any, training: bool) -> None:
    torch.manual_seed(13)
    model = nn.Sequential(Wrapped(lambda x: function(x.mul_(2))), nn.Dropout()).train(training)
    images, hidden = torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4) < 0.5
    kept, before, state = images.clone(), snapshot(model), [p.clone() for p in model.parameters()]
    hooks = [len(vars(nn.modules.module)[k]) for k in vars(nn.modules.module) if "_hooks" in k]
    try:
        masked_forward(model, images, hidden)
    except LayerMaskingError:
        assert function is torch.fft.fft2
    assert snapshot(model) == before
    assert torch.equal(images, kept)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), state, strict=True))
    assert all(p.grad is None for p in model.parameters())
    after = [len(vars(nn.modules.module)[k]) for k in vars(nn.modules.module) if "_hooks" in k]
    assert after == hooks


def test_a_hook_on_a_masked_map_meets_its_gradient() -> None:
    torch.manual_seed(5)
    images, hidden = torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4) < 0.5
    conv, seen = nn.Conv2d(3, 4, 3, padding=1), []

    def watched(x: Tensor) -> Tensor:
        x.register_hook(seen.append)
        return x * 2

    masked_forward(nn.Sequential(conv, Function(watched)), images, hidden).sum().backward()
    torch.testing.assert_close(seen[0], torch.full((2, 4, 8, 8), 2.0))
    # As torch's counter of FLOPs does with every map.
    with FlopCounterMode(display=False) as counter:
        masked_forward(conv, images, hidden)
    assert counter.get_total_flops() >= 2 * 2 * 64 * 9 * 3 * 4
