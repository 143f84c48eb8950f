"""Faults: what ends a training early, each as one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from cfmask.errors import InputError
from cfmask.files import FULL, read_json
from cfmask.runs.run_folder import RunFolder
from cfmask.runs.stopping import Stopping
from cfmask.runs.summary import SUMMARY
from cfmask.terminal import complain

# 128 + SIGTERM and + SIGINT, as a shell says of a process that the signal ended.
STOPPED, INTERRUPTED = 143, 130
NOTHING = "there was no checkpoint, and nothing is kept"
# PyTorch has an error of its own for GPUs alone.
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def endings(trainer: pl.Trainer, folder: RunFolder, stopping: Stopping) -> Iterator[None]:
    """Context of a training that turns an early end into one line and an exit code.

    Args:
        trainer: the trainer that runs inside.
        folder: of the run; its beginning is undone if the run ends before its first checkpoint.
        stopping: the callback that notes signals.

    Raises:
        InputError: a full disk, too little memory, or what the training itself raised.
        SystemExit: after a signal, with the code that a shell gives it.
    """
    try:
        with as_input_errors(trainer, folder):
            yield
    except BaseException as error:
        if isinstance(error, SIGTERMException):
            _stop(trainer, folder, stopping, error)
        kept = bool(folder.checkpoints())
        folder.clear_unless_trained()
        # Lightning answers a second Ctrl-C by an exit with code 1.
        if isinstance(
            error.__context__ if isinstance(error, SystemExit) else error, KeyboardInterrupt
        ):
            then = "go on from the last checkpoint with --resume true" if kept else NOTHING
            complain(f"stopped at once by SIGINT; {then}")
            raise SystemExit(INTERRUPTED) from error
        raise
    if stopping.agreed:
        _stop(trainer, folder, stopping, None)


def _stop(
    trainer: pl.Trainer, folder: RunFolder, stopping: Stopping, error: BaseException | None
) -> NoReturn:
    """Say that the run was told to stop, and end."""
    kept = bool(folder.checkpoints())
    then = "the checkpoint is written, go on with --resume true" if kept else NOTHING
    reason = stopping.reason or "another process"
    complain(f"stopped by {reason} after step {trainer.global_step}; {then}")
    folder.clear_unless_trained()
    raise SystemExit(stopping.code or STOPPED) from error


def smaller_batch(summary: Mapping[str, Any], available: int) -> str:
    """Options for a smaller batch that fits.

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
def as_input_errors(trainer: pl.Trainer, folder: RunFolder) -> Iterator[None]:
    """Context of a training that turns faults of the machine and of settings into one line.

    Raises:
        InputError: a full disk, too little memory, settings that Lightning refuses late.
    """
    try:
        yield
    except MisconfigurationException as error:
        line = " ".join(str(error).split())
        raise InputError(f"Cannot train with these settings: {line}") from error
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
    try:
        summary = read_json(file)
    except InputError:
        return f"Out of memory on {device}, which has {available / 1e9:.2g} GB."
    return (
        f"Out of memory on {device}, which has {available / 1e9:.2g} GB, with "
        f"{summary['batch_per_device']} images a batch, {summary['accumulate']} accumulated: "
        f"{smaller_batch(summary, available)}."
    )


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
