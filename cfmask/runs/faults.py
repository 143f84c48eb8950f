"""Faults: what ends a training early, each as one line and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cfmask.errors import InputError
from cfmask.files import FULL
from cfmask.runs.run_folder import RunFolder
from cfmask.runs.summary import SUMMARY

# 128 + SIGTERM, as a shell says of a process that the signal ended.
STOPPED = 143
# PyTorch has an error of its own for GPUs alone.
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def endings(trainer: pl.Trainer, folder: RunFolder) -> Iterator[None]:
    """Context of a training that turns faults of the machine into their line.

    Args:
        trainer: that trains inside.
        folder: of the run; removed if the run ends before its first checkpoint.

    Raises:
        InputError: a full disk, too little memory, or what the training itself raised.
        SystemExit: code 143 after SIGTERM, with a checkpoint to go on from.
    """
    try:
        with _as_input_errors(trainer, folder):
            yield
    except InputError:
        folder.clear_unless_trained()
        raise
    except SIGTERMException as error:
        print(
            f"stopped by SIGTERM after step {trainer.global_step}; the checkpoint is written, go "
            "on with --resume true",
            file=sys.stderr,
        )
        raise SystemExit(STOPPED) from error


def smaller_batch(summary: Mapping[str, Any], available: int) -> str:
    """A batch that fits, in words.

    Args:
        summary: of the run that did not fit; see `RunSummary`.
        available: bytes of the device.

    Returns:
        Options of the command for the same optimiser steps with smaller batches.
    """
    memory, batch = summary["memory"], int(summary["batch_per_device"])
    grows = memory.get("activations", 0) + memory["images"]
    fixed = sum(memory.values()) - grows
    parts = 2
    # A tenth is left for the driver, for fragments and for what single layers need.
    while fixed + grows / parts > 0.9 * available and batch // (2 * parts) >= 2:
        parts *= 2
    smaller, accumulated = max(1, batch // parts), parts * int(summary["accumulate"])
    needed = f"about {(fixed + grows / parts) / 1e9:.2g} GB"
    return (
        f"--data.batch_size={smaller} --trainer.accumulate_grad_batches={accumulated} makes the "
        f"same steps in {needed if 'activations' in memory else 'less'}, "
        "--model.grad_checkpointing=true saves more"
    )


@contextlib.contextmanager
def _as_input_errors(trainer: pl.Trainer, folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"Cannot write to {folder.path}: {error.strerror}. The last checkpoint is whole; make "
            "room on the disk, then go on with --resume true."
        ) from error
    except (RuntimeError, MemoryError) as error:
        scarce = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not scarce and not NO_MEMORY.search(str(error)):
            raise
        raise InputError(_out_of_memory(trainer, folder)) from error


def _out_of_memory(trainer: pl.Trainer, folder: RunFolder) -> str:
    device = trainer.strategy.root_device
    available = _memory_of(device)
    file = folder.path / SUMMARY
    if not file.is_file():
        return f"Out of memory on {device}, which has {available / 1e9:.2g} GB."
    summary = json.loads(file.read_text())
    return (
        f"Out of memory on {device}, which has {available / 1e9:.2g} GB, with "
        f"{summary['batch_per_device']} images a batch, {summary['accumulate']} accumulated: "
        f"{smaller_batch(summary, available)}."
    )


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
