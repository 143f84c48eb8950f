"""Resume: what lets a run stop at any moment and go on to the very same weights.

A checkpoint is on the disk whole or not at all, and its parts carry checksums. What is random in a
step depends on the seed and on where the step stands, so that no random state has to be kept.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from cfmask.data.epochs import EpochLoader, mixed, run_seed
from cfmask.errors import InputError
from cfmask.files import write_whole
from cfmask.runs.stopping import Stopping, any_device, within_step
from cfmask.weights import damage, read_checkpoint

# Newest names first where two checkpoints are of the same step.
ENDS = ("last.ckpt", "best.ckpt")


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all and read as plain data only.

    Args:
        saved: called after each.
    """

    def __init__(self, saved: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.saved = saved

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see `write_whole`."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda partial: _save(checkpoint, partial))
        self.saved()

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
        self._last_step = -1
        self._usual: tuple[Any, Any] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the usual times of validation back, if the run did not end after all."""
        if self._usual:
            trainer.check_val_every_n_epoch, trainer.val_check_batch = self._usual
            self._usual = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Validate at the end of the run too, so that the best epoch is chosen among all."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if _ends_run(trainer) and trainer.enable_validation:
            self._usual = trainer.check_val_every_n_epoch, trainer.val_check_batch
            trainer.check_val_every_n_epoch, trainer.val_check_batch = 1, batch_idx + 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best, then the last, which knows of the best; Lightning saves it less often."""
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last, if there was no validation to save it after."""
        if self._last_step != trainer.global_step:
            self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self._last_step = trainer.global_step

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
        self._saved_at = time.monotonic()
        self._validated_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is due, unless a validation or the end of the epoch comes next."""
        if within_step(trainer, batch_idx) or _validates_next(trainer, batch_idx):
            return
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this step has its checkpoint; see `BestCheckpoint`."""
        self._validated_step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is due and the epoch was not validated."""
        if self._validated_step != trainer.global_step:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        stops = any(isinstance(c, Stopping) and c.agreed for c in trainer.callbacks)  # type: ignore[attr-defined]
        if any_device(trainer, stops or self._due(trainer.global_step)):
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt")
            self._saved_at = time.monotonic()
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                    old.unlink()

    def _due(self, step: int) -> bool:
        waited = time.monotonic() - self._saved_at
        by_time = self.every_minutes > 0 and waited >= 60 * self.every_minutes
        return by_time or (self.every_steps > 0 and step % self.every_steps == 0)


class Position(Callback):
    """Makes the images and random numbers of a step depend on its position in the run alone.

    Torch is seeded before every step by seed, epoch and batch, and masks and fills take their rows
    of what is drawn for all devices. So masks and donors are the same whether the run was
    interrupted or not, and on any number of devices.
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


def _ends_run(trainer: pl.Trainer) -> bool:
    """True after the last step of a run, and where something has asked for its end."""
    by_steps = 0 < trainer.max_steps <= trainer.global_step
    epochs = trainer.max_epochs
    by_epochs = epochs is not None and 0 < epochs <= trainer.current_epoch + 1
    return by_steps or (by_epochs and trainer.is_last_batch) or trainer.should_stop


def _validates_next(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True where validation comes next: a run that went on from there would leave it out."""
    epochs, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (epochs and (trainer.current_epoch + 1) % epochs):
        return False
    if trainer.should_stop or batches is None or math.isinf(batches):
        return trainer.should_stop or trainer.is_last_batch
    seen = batch_idx if epochs else trainer.fit_loop.epoch_loop.total_batch_idx
    return (seen + 1) % batches == 0
