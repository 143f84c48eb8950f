"""Internals: the private parts of torch, Lightning, open_clip and timm that this package uses.

They are taken from here alone. A release may rename or drop any of them without notice; then one
line says which one has gone, and which releases have it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from cfmask.errors import InputError

# The first release of each library that none of these was tested with.
UNTESTED = {"torch": "2.15", "pytorch-lightning": "2.7", "open_clip_torch": "3.4", "timm": "1.1"}
# Name of a part -> library, module and path within the module.
PARTS = {
    "function_modes": ("torch", "torch.overrides", "_get_current_function_mode_stack"),
    "archive": ("torch", "torch", "_C.PyTorchFileReader"),
    "fake_tensors": ("torch", "torch._subclasses", "FakeTensorMode"),
    "export_violation": ("torch", "torch._export.verifier", "SpecViolationError"),
    "mkldnn_bf16": ("torch", "torch", "ops.mkldnn._is_mkldnn_bf16_supported"),
    "vision_tower": ("open_clip_torch", "open_clip.model", "_build_vision_tower"),
    "embed": ("open_clip_torch", "open_clip.transformer", "VisionTransformer._embeds"),
    "pool": ("open_clip_torch", "open_clip.transformer", "VisionTransformer._pool"),
    "global_pool": ("open_clip_torch", "open_clip.transformer", "VisionTransformer._global_pool"),
    "add_positions": ("timm", "timm.models.vision_transformer", "VisionTransformer._pos_embed"),
    "signals": (
        "pytorch-lightning",
        "pytorch_lightning.trainer.connectors.signal_connector",
        "_SignalConnector",
    ),
}


def internal(name: str) -> Any:
    """A part of `PARTS`.

    Raises:
        InputError: the installed release of its library has no such part.
    """
    library, module, path = PARTS[name]
    try:
        found: Any = import_module(module)
        for step in path.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError) as error:
        raise _gone(library, f"{module}.{path}") from error
    return found


def need(library: str) -> None:
    """Make sure that a library has all its `PARTS`, before a model of it is used.

    Raises:
        InputError: it lacks one.
    """
    for name, (owner, _, _) in PARTS.items():
        if owner == library:
            internal(name)


def embed(tower: Any, images: Any) -> Any:
    """Tokens (B, L, width) of images, positions added, of an open_clip VisionTransformer."""
    return tower._embeds(images)


def pool(tower: Any, tokens: Any) -> Any:
    """What an open_clip VisionTransformer reads its feature from, (B, width)."""
    return tower._pool(tokens)[0]


def global_pool(tower: Any, tokens: Any) -> Any:
    """The same of tokens that are normalised already."""
    return tower._global_pool(tokens)[0]


def add_positions(net: Any, patches: Any) -> Any:
    """Tokens (B, L, width) of embedded patches, of a timm VisionTransformer."""
    return net._pos_embed(patches)


def timm_text(name: str) -> str:
    """A text of those that timm ships about ImageNet.

    Raises:
        InputError: the installed release of timm has no such text.
    """
    try:
        return (files("timm") / "data" / "_info" / name).read_text("utf-8")
    except OSError as error:
        raise _gone("timm", f"timm/data/_info/{name}") from error


def fake_tensors() -> Any:
    """Context in which tensors have shapes but no values.

    Without a GPU, torch's own would make autograd believe in one for the rest of the process, and
    no process that is forked later could compute a gradient.
    """
    kind = internal("fake_tensors")
    return type(kind.__name__, (kind,), {"avoid_device_init": False})(allow_non_fake_inputs=True)


def forget_sigterm(trainer: Any) -> None:
    """Let a trainer of Lightning's forget that it was told to stop."""
    internal("signals")
    trainer._signal_connector.received_sigterm = False


def _gone(library: str, part: str) -> InputError:
    return InputError(
        f"Expected {part} in {library}, but {library} {version(library)} has none; "
        f'pip install "{library}<{UNTESTED[library]}".'
    )
