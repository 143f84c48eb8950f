"""Native: a classifier as a model of open_clip or timm, with the tuned weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from cfmask.errors import InputError
from cfmask.families.openclip import OpenClipClassifier, resize_tower
from cfmask.families.pretrained import load_clip, model_config
from cfmask.families.timm import Sides, TimmClassifier

OTHERS = "export to safetensors, onnx or torch_export"


def native_clip(classifier: OpenClipClassifier) -> tuple[nn.Module, dict[str, Any]]:
    """The CLIP that a classifier began from, with the classifier's image tower put in.

    Its text tower and temperature are those of the starting point, loaded again from there.

    Returns:
        The model in eval mode, and its configuration as open_clip_config.json has it.

    Raises:
        InputError: the starting point cannot be had, or has another image tower.
    """
    model = classifier.name
    if "pretrained" not in classifier.spec.options:
        raise InputError(
            f"Expected weights that say which open_clip weights of {model} they began from, but "
            f"these are of an older version; {OTHERS}."
        )
    clip, _ = load_clip(model, classifier.spec.options["pretrained"])
    size = classifier.image_size
    resize_tower(clip.visual, size, model)
    try:
        clip.visual.load_state_dict(classifier.encoder.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"Expected the image tower of {model}, but the classifier has another one."
        ) from error
    config = model_config(model)
    config["vision_cfg"] = {**config["vision_cfg"], "image_size": _sides(size)}
    images = {**clip.visual.preprocess_cfg, "size": _sides(size)}
    return clip, {"model_cfg": config, "preprocess_cfg": images}


def native_timm(classifier: TimmClassifier) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model with the classifier's head in its place.

    Returns:
        The model in eval mode, and the arguments with which `timm.create_model` builds the like.

    Raises:
        InputError: a model with a head of another kind, or that is changed by its image size.
    """
    import timm

    options: dict[str, Any] = {"num_classes": len(classifier.class_names)}
    if hasattr(classifier.encoder, "set_input_size"):
        options["img_size"] = _sides(classifier.image_size)
    try:
        net = timm.create_model(classifier.name, **options)
        net.load_state_dict(_with_head(classifier, net))
    except (RuntimeError, TypeError) as error:
        raise InputError(
            "Expected a model that timm builds from its name, an image size and a linear head, but "
            f"{classifier.name} has more to it; {OTHERS}."
        ) from error
    return net.eval(), options


def _with_head(classifier: TimmClassifier, net: Any) -> dict[str, Any]:
    """Weights of encoder and head by the names that they have in `net`."""
    names = {id(value): name for name, value in net.state_dict(keep_vars=True).items()}
    layer = net.get_classifier()
    state = dict(classifier.encoder.state_dict())
    for part, value in classifier.head.state_dict().items():
        state[names.get(id(getattr(layer, part, None)), part)] = value
    return state


def _sides(size: Sides) -> int | Sides:
    return size[0] if size[0] == size[1] else size
