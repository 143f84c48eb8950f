"""Precision: where bf16 is faster than fp32, which is what `auto` decides by."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Literal

import torch

from cfmask.internals import PROBES, internal, processor_has

Precision = Literal["auto", "fp32", "bf16"]

# Limits of oneDNN below which bf16 is computed by detours, though AVX512 is allowed.
_WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")


def bf16_unit(device: str) -> str | None:
    """The unit of a device that multiplies bf16 matrices faster than fp32 ones.

    A processor without such instructions computes in bf16 all the same, at a half to a tenth of
    the speed of fp32. `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` in the environment, which
    imitate an older processor, count.

    Args:
        device: type of a torch device: "cpu", "cuda", …

    Returns:
        Its name, as "AVX512-BF16"; None if there is none.
    """
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name() if fast else None
    # oneDNN does the multiplication: Arm's check is whole, that of x86 asks for AVX512 alone.
    if device != "cpu" or not internal("mkldnn_bf16")():
        return None
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "Arm BF16"
    hidden = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")
    if hidden or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16:
        return None
    return next(filter(processor_has, PROBES), None)


def settled(precision: Precision, device: str) -> Literal["fp32", "bf16"]:
    """`auto` as bf16 where a kind of device has instructions for it, else fp32."""
    if precision == "auto":
        return "bf16" if bf16_unit(device) else "fp32"
    return precision


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Context in which GPUs multiply fp32 matrices in TF32: ten bits of each factor's fraction."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
