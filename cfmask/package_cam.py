"""Class activation maps of the grad-cam package (pytorch-grad-cam) as relevance, by their names.

Letters: B images, (h, w) patch grid, (H, W) pixels.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cfmask.classifier import Classifier
from cfmask.errors import InputError, unknown
from cfmask.relevance import Relevance, as_map, normalise


class PackageCAM(Relevance):
    """Any map of the grad-cam package: `ScoreCAM`, `EigenCAM`, `AblationCAM` and others.

    The package changes the model that it explains (hooks, gradients, mode, layers), so it gets a
    copy. Its maps are in pixels; a patch has the mean of those it covers. Some cost hundreds of
    forward passes an image (ScoreCAM and AblationCAM one a channel): use them for `show` and saved
    maps. For masks in training, `GradCAM`, `HiResCAM` and `LayerCAM` of cfmask give the same maps
    in the forward pass of the task loss.

    Args:
        name: of the class in `pytorch_grad_cam`.
        layer: name of the module inside `classifier.encoder` whose output is read; the default is
            the encoder's last stage. `FullGrad` reads all layers with a bias.
        options: further arguments of the class, by name.

    Raises:
        InputError: the package is not installed, or has no such class or option; the nearest are
            named.

    Source: Gildenblat and contributors, https://github.com/jacobgil/pytorch-grad-cam.
    """

    def __init__(
        self, name: str, layer: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        known = package_cams()
        if name not in known:
            raise unknown("class of pytorch_grad_cam", name, known)
        self.name = name
        self.layer = layer
        self.options = options or {}
        self._make = known[name]
        taken = set(inspect.signature(self._make).parameters) - {"model", "target_layers"}
        if stray := sorted(set(self.options) - taken):
            raise unknown(f"option of {name}", stray[0], sorted(taken))
        # A forward and a backward pass of the copy; or one for each channel, not known yet.
        self.passes = math.nan if name in ("ScoreCAM", "AblationCAM") else 3.0

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`.

        Raises:
            InputError: a map that is not defined for this encoder.
        """
        if self.name == "ShapleyCAM" and _channels_come_last(classifier):
            raise InputError(
                f"Expected a CNN for ShapleyCAM, which the package defines for no other, but got "
                f"{classifier.name}; use GradCAM."
            )
        logits = classifier(images)
        twin = copy.deepcopy(classifier).requires_grad_(True)
        # A compiled encoder runs the modules of the model that it was compiled from.
        twin.__dict__.pop("encode", None)
        # The package prints progress bars; some maps need second derivatives, which fused attention
        # lacks.
        quiet, plain = contextlib.redirect_stderr(io.StringIO()), sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), quiet, plain:
            maps = self._maps(twin, images.detach(), labels)
        spread = torch.from_numpy(maps).to(images.device, torch.float32).nan_to_num()
        return logits, normalise(F.adaptive_avg_pool2d(spread.clamp(min=0), classifier.grid))

    def _maps(self, twin: Classifier, images: Tensor, labels: Tensor) -> Any:
        """Maps of the package, an array (B, H, W)."""
        target = import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        layers = [twin.layer(self.layer or twin.feature_map)]
        arguments: dict[str, Any] = {
            "reshape_transform": lambda activation: as_map(activation, twin)
        }
        if "ablation_layer" in inspect.signature(self._make).parameters:
            package, last = import_module("pytorch_grad_cam"), _channels_come_last(twin)
            layer = package.AblationLayerVit if last else package.AblationLayer
            arguments["ablation_layer"] = layer()
        try:
            cam = self._make(
                twin, [] if self.name == "FullGrad" else layers, **{**arguments, **self.options}
            )
            return cam(input_tensor=images, targets=[target(k) for k in labels.tolist()])
        except (ValueError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(
                f"Expected an encoder and options that {self.name} of pytorch_grad_cam takes, but "
                f"{twin.name} made it fail: {' '.join(str(error).split())[:200]}; use GradCAM, or "
                "name another layer."
            ) from error


def package_cams() -> dict[str, Any]:
    """The classes of the package that explain a model by its layers, by name.

    Raises:
        InputError: the package cannot be imported.
    """
    try:
        package = import_module("pytorch_grad_cam")
    except ImportError as error:
        raise InputError(
            f"Expected the package grad-cam, but it cannot be imported ({error}): pip install "
            "grad-cam."
        ) from error
    classes = {name: value for name, value in vars(package).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in classes.items()
        if "target_layers" in inspect.signature(value).parameters
        and name != "ActivationsAndGradients"
    }


def _channels_come_last(classifier: Classifier) -> bool:
    return classifier.tokens is not None or classifier.layout.channels_last
