"""Small CNNs for layer masking, and their formulas."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet50": torchvision.models.resnet50,
    "torchvision convnext_tiny": torchvision.models.convnext_tiny,
    "torchvision mobilenet_v2": torchvision.models.mobilenet_v2,
    "torchvision mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "torchvision densenet121": torchvision.models.densenet121,
    "torchvision regnet_y_400mf": torchvision.models.regnet_y_400mf,
    "torchvision efficientnet_b0": torchvision.models.efficientnet_b0,
    "torchvision shufflenet": torchvision.models.shufflenet_v2_x0_5,
    "timm resnet18": lambda: timm.create_model("resnet18"),
    "timm resnet26d": lambda: timm.create_model("resnet26d"),
    "timm tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto"),
    "timm convnextv2_atto": lambda: timm.create_model("convnextv2_atto"),
    "timm tf_mobilenetv3_small": lambda: timm.create_model("tf_mobilenetv3_small_100"),
    "timm densenet121": lambda: timm.create_model("densenet121"),
    "timm regnety_002": lambda: timm.create_model("regnety_002"),
}


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value at which no defect can hide."""
    for name, parameter in model.named_parameters():
        if parameter.ndim in (2, 4) and parameter[0].numel() > 1:
            nn.init.kaiming_normal_(parameter)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


@functools.cache
def build(name: str) -> nn.Module:
    """One of MODELS with random values, in eval mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(MODELS[name]()).eval().requires_grad_(False)


def pixels(hidden: Tensor, height: int, width: int) -> Tensor:
    """Flags of patches (B, h, w) as flags of pixels (B, 1, H, W), by index arithmetic."""
    rows = torch.arange(height) * hidden.shape[1] // height
    columns = torch.arange(width) * hidden.shape[2] // width
    return hidden[:, rows][:, :, columns].unsqueeze(1)


class Wrapped(nn.Module):
    """A function between two convolutions, inside a named child, as models have it."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = Function(function)
        self.after = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.middle(self.before(x))).mean((2, 3))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
