"""Weights: files of tensors, read as data, and checked before a module takes them."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cfmask.errors import UNFIT, InputError, one_line

# What torch, pickle and zipfile raise at broken files.
BROKEN: tuple[type[Exception], ...] = (
    *UNFIT,
    EOFError,
    OSError,
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file or of a plain torch file, on the CPU.

    Raises:
        InputError: truncated, not weights, or a pickle that would execute code.
    """
    if path.suffix != ".safetensors":
        return tensors_of(read_checkpoint(path))
    try:
        return load_file(path)
    # Kinds of numbers that torch lacks are a KeyError.
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: Exception) -> InputError:
    return InputError(f"Cannot read weights from {path}: {one_line(error)}. Is it truncated?")


def tensors_of(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Those values of a dictionary that are tensors with a name."""
    return {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}


def read_header(path: Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file, by name.

    Raises:
        InputError: another kind of file, or a damaged one.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"Expected a .safetensors or .ckpt file, but got {path}.")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unread(path, error) from error


def parsed(text: str | bytes, source: Path) -> Any:
    """The JSON that a file holds.

    Raises:
        InputError: it is damaged.
    """
    try:
        return json.loads(text)
    # JSON that nests without end is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"Expected JSON as a description in {source}, but it is damaged: {one_line(error)}."
        ) from error


def read_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The dictionary of a torch file, tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors on the disk until they are read.

    Raises:
        InputError: truncated, no dictionary, or a pickle that would execute code.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=mapped
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"Refused {path}: it is a pickle that holds more than weights and could execute code; "
            "save its state_dict alone."
        ) from error
    except BROKEN as error:
        raise _unread(path, error) from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"Expected a dictionary of weights in {path}, but got {type(checkpoint)}.")
    return checkpoint


def damage(path: Path) -> str | None:
    """What is wrong with a torch file, by the CRC-32 of its parts; None if it is whole.

    Torch itself does not compare them when it reads.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except BROKEN as error:
        return one_line(error, 200)
    return f"the checksum of {part} is wrong" if part else None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a module, all of them and only such as fit.

    Args:
        module: whose names, shapes and kinds of numbers the weights must have; precision may
            differ.
        tensors: by name.
        source: where they come from, for messages.

    Raises:
        InputError: other names or shapes, integers or the like for floats, or what is not finite.
    """
    check_weights(module, tensors, source)
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        name = getattr(module, "name", type(module).__name__)
        raise InputError(
            f"Expected the weights of {name} in {source}: {one_line(error)}"
        ) from error


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that a module would take by changing what they mean; see `load_weights`."""
    own = module.state_dict()
    # What a module itself begins with, such as a mask of -inf, it may get back.
    masks = {name for name, value in module.named_buffers() if not _is_finite(value)}
    for name, value in tensors.items():
        kind = _kind(own.get(name, value))
        if _kind(value) != kind:
            raise InputError(
                f"Expected {kind} numbers in {name} of {source}, but got {value.dtype}."
            )
        if name not in masks and not _is_finite(value):
            raise InputError(
                f"Expected finite weights in {source}, but {name} has NaN or infinity."
            )


def _is_finite(value: Tensor) -> bool:
    # Of floats of 8 bits torch cannot tell.
    wide = value.float() if value.is_floating_point() and value.itemsize == 1 else value
    return value.layout == torch.strided and bool(wide.isfinite().all())


def _kind(value: Tensor) -> str:
    """Kind of numbers; casts within a kind keep the meaning."""
    if value.is_quantized:
        return "quantised"
    if value.is_floating_point():
        return "floating-point"
    if value.is_complex():
        return "complex"
    return "true or false" if value.dtype == torch.bool else "whole"
