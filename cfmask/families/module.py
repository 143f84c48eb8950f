"""Classifiers made of any nn.Module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cfmask.classifier import Classifier, Layout
from cfmask.errors import UNFIT, InputError, one_line
from cfmask.images import Preprocess
from cfmask.spec import Spec
from cfmask.trust import find_callable

# Packages whose modules raise errors at arguments and sizes that they do not take.
LIBRARIES = (
    *("cfmask", "open_clip", "pytorch_lightning", "timm"),
    *("torch", "torchmetrics", "torchvision"),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ModuleClassifier(Classifier):
    """A module of one's own, of torchvision or of anyone: normalised images -> logits.

    Where its logits come from a last `nn.Linear`, the features are what that layer reads: the
    module then trains by every method. Otherwise the logits themselves are its features. Grad-CAM
    reads the last module whose output is a map of positions, if there is one.

    Args:
        module: the module; or the import path of what makes it, such as `my_module.MyNet` or
            `torchvision.models.resnet18`. A file can be read back only if it was given as a path.
        options: arguments of what makes it, by name, as JSON has them.
        class_names: K names, in the order of the logits. The commands take them from the data.
        head: `own` keeps the last layer, `linear` puts a fresh one in its place.
        image_size: side in pixels, or (H, W).
        mean: of the pixels in [0, 1] by channel, subtracted; the default is that of ImageNet.
        std: of the pixels by channel, divided by.
        crop_pct: share of the resized picture's short side that the crop keeps.
        interpolation: `bicubic` or `bilinear`.
        feature_map: name of the module inside whose output Grad-CAM reads, if not the last.

    Raises:
        InputError: nothing there by this path; a module that does not give (B, K) logits for images
            of this size; no last linear layer to put a fresh one in its place.

    Examples:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> classifier = cfmask.ModuleClassifier(net, class_names=["ant", "bee"], image_size=8)
        >>> classifier(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        module: str | nn.Module,
        options: dict[str, Any] | None = None,
        class_names: Sequence[str] = (),
        head: Literal["own", "linear"] = "own",
        image_size: int | tuple[int, int] = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
        feature_map: str | None = None,
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        made = find_callable(module)(**(options or {})) if isinstance(module, str) else module
        if not isinstance(made, nn.Module):
            raise InputError(f"Expected {module} to make an nn.Module, but got {type(made)}.")
        preprocess = Preprocess((size[0], size[1]), crop_pct, interpolation)
        encoder, own = _split(made, preprocess.size)
        width = _features(encoder, preprocess.size).shape[1]
        layer: nn.Module = own if own is not None else nn.Identity()
        if head == "linear":
            if own is None:
                raise InputError(
                    "Expected a module whose logits come from a last nn.Linear for a fresh head, "
                    f"but {type(made).__name__} has none; give head: own."
                )
            layer = nn.Linear(width, len(class_names))
        elif (found := own.out_features if own is not None else width) != len(class_names):
            raise InputError(
                f"Expected {len(class_names)} logits, one a class, but {type(made).__name__} gives "
                f"{found}; give head: linear for a fresh head, or the names of its classes."
            )
        kind = head if own is not None else "none"
        kept = {"module": module if isinstance(module, str) else None, "arguments": options or {}}
        spec = Spec(
            module if isinstance(module, str) else type(made).__name__,
            tuple(class_names),
            preprocess,
            mean,
            std,
            kind,
            width,
            None if head == "linear" else "weights",
            {**kept, "feature_map": feature_map},
        )
        super().__init__(encoder, layer, spec)
        self._choose_map()

    @classmethod
    def architecture(cls, spec: Spec) -> nn.Module:
        """See `Classifier.architecture`.

        Raises:
            InputError: the module was given as an object, of which a file cannot tell the maker; a
                path that the process has not imported.
        """
        path = spec.options.get("module")
        if not isinstance(path, str):
            raise InputError(
                f"Expected the import path of what makes {spec.model}, but it was wrapped as an "
                "object; wrap it again and load its weights, or give ModuleClassifier a path."
            )
        options = spec.options.get("arguments") or {}
        if not isinstance(options, Mapping):
            raise InputError(f"Expected arguments of {path} by name, but got {options!r:.80}.")
        try:
            made = _rebuilt(path, options)
            _features(made, spec.preprocess.size)
            return _split(made, spec.preprocess.size)[0]
        except UNFIT as error:
            # An error in a module of one's own is no damaged file.
            if isinstance(error, InputError) or path.partition(".")[0] not in LIBRARIES:
                raise
            text = f"Cannot build {path} with {options!r:.80}: {one_line(error)}."
            raise InputError(text) from error

    @classmethod
    def from_spec(cls, spec: Spec) -> Classifier:
        """See `Classifier.from_spec`."""
        classifier = super().from_spec(spec)
        assert isinstance(classifier, ModuleClassifier)
        classifier._choose_map()
        return classifier

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """See `Classifier.layout_of`."""
        maps = _maps(encoder, image_size)
        name, grid = next(reversed(maps.items()), ("", (1, 1)))
        return Layout(grid, name)

    def _choose_map(self) -> None:
        """Read another map than the last, if its name was given."""
        name = self.spec.options.get("feature_map")
        if name is not None:
            self.layer(name)
            grid = _maps(self.encoder, self.image_size).get(name, (1, 1))
            self.layout = replace(self.layout, feature_map=name, grid=grid)


def _rebuilt(path: str, options: Mapping[str, Any]) -> nn.Module:
    """The module that a file describes, without any weights: they come from the file."""
    package, _, name = path.rpartition(".")
    if package == "torchvision.models":
        from torchvision.models import get_model

        # Theirs would be fetched.
        none = {key: None for key in ("weights", "weights_backbone") if key in options}
        made = get_model(name, **{**options, **none})
    else:
        maker = find_callable(path, nn.Module)
        try:
            inspect.signature(maker).bind(**options)
        except TypeError as error:
            raise InputError(f"Expected arguments that {path} takes, but {error}.") from error
        made = maker(**options)
    if not isinstance(made, nn.Module):
        raise InputError(f"Expected {path} to make an nn.Module, but got {type(made)}.")
    return made


def _split(module: nn.Module, size: tuple[int, int]) -> tuple[nn.Module, nn.Linear | None]:
    """A module without its last linear layer, and that layer; the whole where it has no such.

    The last is the last by order of definition, if the logits are what it makes of the rest.
    """
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear or linear[-1] == "":
        return module, None
    encoder = copy.deepcopy(module)
    parent, _, name = linear[-1].rpartition(".")
    last = getattr(encoder.get_submodule(parent), name)
    setattr(encoder.get_submodule(parent), name, nn.Identity())
    features, logits = _features(encoder, size), _features(module, size)
    if features.ndim != 2 or features.shape[1] != last.in_features:
        return module, None
    with torch.no_grad():
        same = torch.allclose(last(features), logits, atol=1e-4, rtol=1e-4)
    return (encoder, last) if same else (module, None)


@torch.no_grad()
def _features(module: nn.Module, size: tuple[int, int]) -> Tensor:
    """Output (1, D) for one image, in eval mode; modes are put back."""
    modes = {part: part.training for part in module.modules()}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        output = module.eval()(noise)
    finally:
        for part, training in modes.items():
            part.training = training
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"Expected {type(module).__name__} to give logits (B, K) for images (B, 3, {size[0]}, "
            f"{size[1]}), but got {shape} for one; wrap it in a module that does."
        )
    return output


def _maps(encoder: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """(h, w) of the outputs that are maps of several positions, by module, in order of running."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
                found.pop(name, None)
                found[name] = (output.shape[2], output.shape[3])

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in encoder.named_modules()]
    try:
        _features(encoder, size)
    finally:
        for handle in handles:
            handle.remove()
    height, width = size
    fits = {n: (h, w) for n, (h, w) in found.items() if height % h == 0 and width % w == 0}
    return fits
