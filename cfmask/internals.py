"""Internals: the private parts of other libraries that this package uses.

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
    "flash_on_cpu": ("torch", "torch", "ops.aten._scaled_dot_product_flash_attention_for_cpu"),
    "batch_norm": ("torch", "torch.nn.modules.batchnorm", "_BatchNorm"),
    "make_subclass": ("torch", "torch", "Tensor._make_subclass"),
    "plain_tensors": ("torch", "torch._C", "DisableTorchFunctionSubclass"),
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
    # What subclasses of this package override.
    "csv_folder": (
        "pytorch-lightning",
        "pytorch_lightning.loggers.csv_logs",
        "ExperimentWriter._check_log_dir_exists",
    ),
    "bar": ("pytorch-lightning", "pytorch_lightning.callbacks", "RichProgressBar._update_metrics"),
    "hyperparameters": (
        "pytorch-lightning",
        "pytorch_lightning.cli",
        "LightningCLI._add_instantiators",
    ),
    "trainer": ("pytorch-lightning", "pytorch_lightning.cli", "LightningCLI._instantiate_trainer"),
}
# What torch can say of a processor, by name; older releases have fewer of these.
PROBES = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


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


def workers_of(batches: Any) -> list[Any]:
    """The processes behind an iterator over a torch loader's batches; none where there are none."""
    return [*getattr(batches, "_workers", ())]


def is_attached(module: Any) -> bool:
    """Whether a LightningModule has a trainer, without the error of its property."""
    return module._trainer is not None


def takes_found_inf(optimizer: Any) -> bool:
    """Whether an optimiser leaves out steps by its `found_inf` on the device, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def option_types(parser: Any) -> dict[str, Any]:
    """Type of each option of a jsonargparse parser by its name; None where it notes none."""
    actions = parser._option_string_actions
    return {name: getattr(action, "_typehint", None) for name, action in actions.items()}


def has_positionals(parser: Any) -> bool:
    """Whether a parser takes words that are no options."""
    return not all(action.option_strings for action in parser._actions)


def processor_has(name: str) -> bool:
    """Whether the processor has a unit of `PROBES`, as far as the installed torch can say."""
    probe = getattr(import_module("torch.cpu"), PROBES[name], None)
    return probe is not None and bool(probe())


def _gone(library: str, part: str) -> InputError:
    return InputError(
        f"Expected {part} in {library}, but {library} {version(library)} has none; "
        f'pip install "{library}<{UNTESTED[library]}".'
    )
