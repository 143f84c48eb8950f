"""Layer masking by other rules, against slow versions of the released way of each architecture.

The slow versions hand values and visibility (B, C, H, W), (B, 1, H, W) in {0, 1} from layer to
layer, as the paper's released code does, and know nothing of the package. All in float64.
"""

from __future__ import annotations

import functools

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support.masked_nets import randomise
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from cfmask.layer_masking import MaskRules, applying, masked_forward

Pair = tuple[Tensor, Tensor]


def slow_fill(a: Tensor, v: Tensor, rounds: int) -> Tensor:
    """Unknown positions take the mean of their known neighbours, `rounds` deep."""
    a, known = a * v, v.clone()
    for _ in range(rounds):
        near = F.unfold(F.pad(a, (1, 1, 1, 1)), 3).view(*a.shape[:2], 9, -1).sum(2).view(a.shape)
        count = F.unfold(F.pad(known, (1, 1, 1, 1)), 3).sum(1).view(known.shape)
        a = a + (1 - known) * near / count.clamp(min=1)
        known = (known + count).clamp(0, 1)
    return a


def conv(layer: nn.Conv2d, x: Pair, zeroed: bool = True) -> Pair:
    a, v = x
    out = layer(slow_fill(a, v, layer.kernel_size[0]))
    v = F.max_pool2d(v, layer.kernel_size, layer.stride, layer.padding)
    return (out * v if zeroed else out), v


def at_visible(layer: nn.Module, x: Pair) -> Pair:
    """Batch norm and activations."""
    a, v = x
    return layer(a * v) * v, v


def max_pool(layer: nn.MaxPool2d, x: Pair) -> Pair:
    a, v = layer(x[0] * x[1]), layer(x[1])
    return a * v, v


def majority(parts: list[Pair]) -> Pair:
    """Visible if more than half of the concatenated maps are."""
    v = (sum(v for _, v in parts) > len(parts) / 2).double()
    return torch.cat([a for a, _ in parts], 1), v


def slow_densenet(net: nn.Module, x: Pair) -> Tensor:
    f = net.features
    x = max_pool(f.pool0, at_visible(f.relu0, at_visible(f.norm0, conv(f.conv0, x))))
    for k in (1, 2, 3, 4):
        parts = [x]
        for layer in getattr(f, f"denseblock{k}").values():
            y = conv(layer.conv1, at_visible(layer.relu1, at_visible(layer.norm1, majority(parts))))
            y = conv(layer.conv2, at_visible(layer.relu2, at_visible(layer.norm2, y)))
            parts.append(y)
        x = majority(parts)
        if k < 4:
            t = getattr(f, f"transition{k}")
            a, v = conv(t.conv, at_visible(t.relu, at_visible(t.norm, x)))
            v = (t.pool(v) > 0).double()
            x = t.pool(a) * v, v
    a, v = at_visible(f.norm5, x)
    return net.classifier((a.relu() * v).mean((2, 3)))


def slow_squeezenet(net: nn.Module, x: Pair) -> Tensor:
    for layer in net.features:
        if isinstance(layer, nn.Conv2d):
            x = conv(layer, x, zeroed=False)
        elif isinstance(layer, nn.ReLU):
            x = x[0].relu(), x[1]
        elif isinstance(layer, nn.MaxPool2d):
            x = layer(x[0] * x[1]), layer(x[1])
        else:
            a, v = conv(layer.squeeze, x, zeroed=False)
            x = a.relu(), v
            (a, v), (b, w) = (
                conv(part, x, zeroed=False) for part in (layer.expand1x1, layer.expand3x3)
            )
            # Union.
            x = torch.cat([a.relu(), b.relu()], 1), (v + w).clamp(0, 1)
    a, v = conv(net.classifier[1], x, zeroed=False)
    return (a.relu() * v).mean((2, 3))


def slow_timm_resnet(net: nn.Module, x: Pair) -> Tensor:
    x = max_pool(net.maxpool, at_visible(F.relu, at_visible(net.bn1, conv(net.conv1, x))))
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            y = at_visible(F.relu, at_visible(block.bn1, conv(block.conv1, x)))
            y = at_visible(F.relu, at_visible(block.bn2, conv(block.conv2, y)))
            a, v = at_visible(block.bn3, conv(block.conv3, y))
            if block.downsample is not None:
                x = at_visible(block.downsample[1], conv(block.downsample[0], x))
            v = v * x[1]
            x = at_visible(F.relu, ((a + x[0]) * v, v))
    # The mask is dropped: hidden zeros count.
    return net.fc(x[0].mean((2, 3)))


CASES = {
    "densenet": (
        functools.partial(torchvision.models.DenseNet, 8, (2, 3, 2, 2), 16),
        slow_densenet,
        MaskRules(join="majority", mean="all"),
    ),
    "squeezenet": (
        torchvision.models.squeezenet1_1,
        slow_squeezenet,
        MaskRules(join="union", mean="all", outside="kept"),
    ),
    "timm resnet": (
        functools.partial(timm.models.resnet.ResNet, Bottleneck, (1, 2, 1, 1)),
        slow_timm_resnet,
        MaskRules(mean="all"),
    ),
}


# The architectures themselves.
WHOLE = {
    "densenet121": (torchvision.models.densenet121, *CASES["densenet"][1:]),
    "timm resnet50": (functools.partial(timm.create_model, "resnet50"), *CASES["timm resnet"][1:]),
}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)]
)
@torch.no_grad()
def test_each_architecture_goes_the_way_of_the_released_code_when_asked_to(name):
    make, slow, rules = (CASES | WHOLE)[name]
    torch.manual_seed(0)
    net = randomise(make()).eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    hidden = torch.rand(2, 8, 8) < torch.tensor([0.4, 0.8]).view(-1, 1, 1)
    visible = ~hidden.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    expected = slow(net, (images * visible, visible.double()))
    with applying(rules):
        got = masked_forward(net, images, hidden)
    scale = expected.std()
    assert (got - expected).abs().max() < 1e-8 * scale
    assert (masked_forward(net, images, hidden) - expected).abs().max() > 1e-3 * scale
    with applying(rules):
        whole = masked_forward(net, images, torch.zeros_like(hidden))
    assert torch.allclose(whole, net(images))


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (2, 1, 2)])
@torch.no_grad()
def test_convolutions_without_padding_and_partial_ones_equal_slow_loops(stride, padding, groups):
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 6, 3, stride, padding, groups=groups).double()
    net = nn.Sequential(layer, nn.Flatten())
    images = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    hidden = torch.rand(1, 9, 9) < 0.6
    hidden[0, :4, :4] = True
    seen = (~hidden[0]).double()
    a = F.pad(images[0] * seen, [padding] * 4)
    v = F.pad(seen, [padding] * 4)
    side = (a.shape[1] - 3) // stride + 1
    expected = {way: torch.zeros(6, side, side).double() for way in ("none", "partial")}
    for i in range(side):
        for j in range(side):
            at = (slice(i * stride, i * stride + 3), slice(j * stride, j * stride + 3))
            share = v[at].mean()
            if share == 0:
                continue
            for o in range(6):
                own = slice(0, 4) if groups == 1 else slice(o // 3 * 2, o // 3 * 2 + 2)
                total = (a[own][(slice(None), *at)] * layer.weight[o]).sum()
                expected["none"][o, i, j] = total + layer.bias[o]
                expected["partial"][o, i, j] = total / (share + 1e-8) + layer.bias[o]
    assert (expected["none"] == 0).any()
    for way, values in expected.items():
        with applying(MaskRules(padding=way)):
            got = masked_forward(net, images, hidden)
        assert (got - values.flatten()).abs().max() < 1e-10, way
