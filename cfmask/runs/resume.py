"""Resume: what lets a run stop at any moment and go on to the very same weights.

A checkpoint is on the disk whole or not at all, and its parts carry checksums. What is random in a
step depends on the seed and on where the step stands, so that no random state has to be kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cfmask.checkpoint import damage, read_checkpoint
from cfmask.data.epochs import EpochLoader, mixed, run_seed
from cfmask.errors import InputError
from cfmask.files import write_whole

# Newest names first where two checkpoints are of the same step.
ENDS = ("last.ckpt", "best.ckpt")


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all and read as plain data only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see `write_whole`."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda partial: _save(checkpoint, partial))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; a pickle that could execute code is refused, always."""
        return read_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints of the best epoch and of the last, in a folder that may have moved.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor="val/accuracy",
            mode="max",
            # After validation and not after the epoch, which a run that goes on would miscount.
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.last = folder / ENDS[0]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best, then the last, which knows of the best; Lightning saves it less often."""
        super().on_validation_end(trainer, pl_module)
        if not (trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)):
            trainer.save_checkpoint(self.last)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last, if there was no validation to save it after."""
        if not trainer.enable_validation:
            trainer.save_checkpoint(self.last)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, with its paths as paths of this folder.

        Lightning deletes files by these paths, so they must not lead anywhere else.

        Raises:
            InputError: a path that leaves the folder.
        """
        folder = Path(str(state_dict["dirpath"]))

        def here(path: str) -> str:
            if path and (Path(path).parent != folder or Path(path).name in ("", ".", "..")):
                raise InputError(
                    f"Expected a checkpoint that names files of its own folder, but got {path}; "
                    "start the run again with --overwrite true."
                )
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        # A best checkpoint that was lost gives way to the next epoch's.
        kept = {path: score for path, score in kept.items() if Path(path).is_file()}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath}
        )


class StepCheckpoints(Checkpoint):
    """Checkpoints within an epoch, by steps and by time, and one when the run is told to stop.

    SIGTERM (as of a scheduler that takes the machine back) ends the run after the step that is
    being made, on all devices after the same one, with a checkpoint.

    Args:
        every_steps: optimiser steps from one checkpoint to the next; 0 for none by steps.
        every_minutes: minutes from one checkpoint to the next; 0 for none by time.
        keep: how many of them remain; the newest may turn out damaged.
        run: folder of the run.
    """

    def __init__(
        self,
        every_steps: int = 0,
        every_minutes: float = 15.0,
        keep: int = 2,
        run: str = "runs/run",
    ) -> None:
        if every_steps < 0 or every_minutes < 0 or keep < 1:
            raise InputError(
                "Expected every_steps >= 0, every_minutes >= 0 and keep >= 1, but got "
                f"{every_steps}, {every_minutes} and {keep}."
            )
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.folder = checkpoints_of(run)
        self.told_to_stop = False
        self._stop_next = False
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for SIGTERM in place of Lightning, which would stop where nothing can be saved."""
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            # Lightning puts back the handlers that were there before the run.
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self.told_to_stop = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time to."""
        if _within_step(trainer, batch_idx) or _before_validation(trainer, batch_idx):
            return
        if _any_device(trainer, self.told_to_stop or self._due(trainer.global_step)):
            self._save(trainer)
            self._stop_next = _any_device(trainer, self.told_to_stop)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if told to, now that the metrics of the step before are written too."""
        if self._stop_next:
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if told to; the checkpoint of the epoch's end is there."""
        if _any_device(trainer, self.told_to_stop):
            raise SIGTERMException

    def _due(self, step: int) -> bool:
        waited = time.monotonic() - self._saved_at
        by_time = self.every_minutes > 0 and waited >= 60 * self.every_minutes
        return by_time or (self.every_steps > 0 and step % self.every_steps == 0)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt")
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()


class Position(Callback):
    """Lets the order of the images and all chance of a step depend on where the step stands.

    Masks and donors are so the same whether the run was stopped on the way or not, and on however
    many devices it runs: torch is seeded before every step, by seed, epoch and batch, and masks
    and fills take their rows of what it draws for all devices.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the batch after the last one that the checkpoint has seen."""
        given = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        loader = trainer.train_dataloader
        if isinstance(loader, EpochLoader) and given < trainer.num_training_batches:
            loader.skip = given

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of the CPU and of the device."""
        torch.manual_seed(mixed(run_seed(), trainer.current_epoch, batch_idx))


def leads() -> bool:
    """Whether this process is the first of those that train together: it alone writes."""
    return not getattr(rank_zero_only, "rank", 0)


def checkpoints_of(run: str | os.PathLike[str]) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run) / "checkpoints"


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step among those that are whole; None if there is none.

    A damaged one is named in a warning, put aside as `.damaged` and passed over.

    Raises:
        InputError: one that could execute code.
    """
    found = {}
    for path in sorted(folder.glob("*.ckpt")):
        wrong = damage(path)
        if wrong:
            warnings.warn(
                f"The checkpoint {path} is damaged ({wrong}); an older one is used.", stacklevel=2
            )
            _put_aside(path)
        else:
            step = read_checkpoint(path, mapped=True).get("global_step", -1)
            found[path] = (int(step), path.name in ENDS, path.name == ENDS[0])
    return max(found, key=lambda path: found[path], default=None)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)


@rank_zero_only
def _put_aside(path: Path) -> None:
    path.rename(path.with_suffix(".damaged"))


def _within_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True while gradients are being accumulated, which no checkpoint holds."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0


def _before_validation(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True where validation comes next: a run that went on from there would leave it out."""
    every = trainer.val_check_batch
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.epoch_loop.total_batch_idx
    return trainer.is_last_batch or (bool(every) and (batch_idx + 1) % float(every or 1) == 0)


def _any_device(trainer: pl.Trainer, wanted: bool) -> bool:
    """Whether any device wants it, the same answer on all."""
    if trainer.world_size == 1:
        return wanted
    decided: bool = trainer.strategy.reduce_boolean_decision(wanted, all=False)
    return decided
