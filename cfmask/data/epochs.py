"""Epochs: order and augmentation of training images, functions of seed, epoch and image alone.

So a run that stopped anywhere goes on as if it had not, with any number of workers.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cfmask.errors import InputError
from cfmask.internals import workers_of

log = logging.getLogger(__name__)
# Signals that tell a run to stop; by name, as some systems lack some of them.
STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


class EpochSampler(DistributedSampler[int]):
    """The order of the training images in each epoch, for one of several devices.

    All devices read from one permutation, device r of W its entries r, r + W, r + 2 W, …: a step
    sees the same images however many devices share them. Images that do not fill a row of W are
    left out of the epoch, so that all devices make equally many steps; so is a last batch of one
    image on a device, which has no donor. The next epoch leaves out others.

    Draws are numbers `epoch * count + index`: `Seeded` wants to know the epoch too.

    Args:
        count: number N of images.
        batch_size: images a step on one device.
        seed: of the run.
        rank: number of this device.
        world: number W of devices.

    Attributes:
        skip: draws that the next pass leaves out at its start, for a run that goes on within an
            epoch. The length remains that of the whole epoch.

    Raises:
        InputError: too few images for one batch on every device.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(range(count), world, rank, seed=seed)  # type: ignore[arg-type]
        self.count = count
        self.skip = 0
        each = count // world
        self.num_samples = each - 1 if batch_size > 1 and each % batch_size == 1 else each
        self.total_size = self.num_samples * world
        if self.num_samples < 1:
            least = world * min(2, batch_size)
            raise InputError(
                f"Expected at least {least} training images for batches of {batch_size} on {world} "
                f"device{'s' * (world > 1)}, but got {count}; add images."
            )

    def order(self) -> Tensor:
        """Indices int64 of this device's images in the epoch that `set_epoch` chose."""
        rng = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        return torch.randperm(self.count, generator=rng)[
            self.rank : self.total_size : self.num_replicas
        ]

    def __iter__(self) -> Iterator[int]:
        """Draws of the epoch."""
        draws = (self.order() + self.epoch * self.count)[self.skip :]
        self.skip = 0
        return iter(draws.tolist())


class Seeded(Dataset[tuple[Tensor, int]]):
    """A training set whose random augmentation depends on the image and the epoch alone.

    Item `epoch * N + index` is image `index`, made while the generators of torch, NumPy and
    `random` are seeded by seed, epoch and index; they are put back. Transforms that draw from them,
    as torchvision's do, give the same in every order and in every worker; one with a generator of
    its own does not.

    Args:
        data: the images, N of them.
        seed: of the run.
    """

    def __init__(self, data: Dataset[tuple[Tensor, int]], seed: int) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, draw: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label."""
        epoch, index = divmod(draw, len(self))
        with _seeded(mixed(self.seed, epoch, index)):
            return self.data[index]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context in which the global generators are seeded; afterwards their states are put back."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Seeding through torch.manual_seed would touch the generators of all devices.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


class EpochLoader(DataLoader[tuple[Tensor, int]]):
    """A loader that can begin within an epoch, where a run that was stopped goes on.

    A pass starts with its first batch, not before: Lightning asks for one too early. While a batch
    is not there after `patience`, a warning says so.

    Attributes:
        skip: batches that the next pass leaves out at its start.
        patience: seconds.
    """

    skip = 0
    patience = 60.0

    def __iter__(self) -> Any:
        """Batches of the epoch that the sampler was set to."""
        first, self.skip = self.skip, 0
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = first * cast(int, self.batch_size)
        batches = super().__iter__()
        if self.num_workers:
            # Once, and called before multiprocessing waits for the workers.
            atexit.unregister(_at_exit)
            atexit.register(_at_exit)
        watch = _Watch(self.patience, self._say_slow)
        try:
            for number in itertools.count(first):
                watch.wanted = number, time.monotonic()
                batch = _next(batches)
                watch.wanted = None
                if batch is None:
                    return
                yield batch
        finally:
            watch.ended.set()

    def _say_slow(self, number: int) -> None:
        log.warning(
            "Batch %d has not come for %.0f s: the disk is slow, or a process that reads images "
            "hangs. There are %d such processes (workers).",
            number,
            self.patience,
            self.num_workers,
        )


def _next(batches: Any) -> Any:
    """The next batch, or None at the end.

    Raises:
        RuntimeError: torch's of a worker that ended, also if it did so while it handed one over.
    """
    try:
        return next(batches, None)
    except (OSError, EOFError):
        workers = {worker.sentinel: worker.pid for worker in workers_of(batches)}
        ended = wait([*workers], 1) if workers else []
        if died := [str(workers[place]) for place in ended]:
            words = f"DataLoader worker (pid(s) {', '.join(died)}) exited unexpectedly"
            raise RuntimeError(words) from None
        raise


class _Watch(threading.Thread):
    """Calls `say` with the number of a batch that has been waited for longer than `patience`, once.

    Attributes:
        wanted: number of the batch that is waited for, and since when; None while none is.
        ended: set when no batch is wanted any more.
    """

    def __init__(self, patience: float, say: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self.patience, self.say = patience, say
        self.wanted: tuple[int, float] | None = None
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        """See `threading.Thread.run`."""
        said = -1
        while not self.ended.wait(self.patience / 4):
            number, since = self.wanted or (said, 0.0)
            if number != said and time.monotonic() - since >= self.patience:
                self.say(number)
                said = number


def start_worker(number: int) -> None:
    """Set up a worker, which ignores signals to stop: the run still needs it then."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    pl_worker_init_function(number)


def end_workers() -> None:
    """End all processes of this one that would end with it, whatever signals they ignore.

    When a program ends, Python asks them by SIGTERM, and waits. Workers ignore it; where an error
    or a second Ctrl-C ends a run, nothing else has told them, and the program would never end.
    """
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.terminate()
    ending = time.monotonic() + 1
    for child in children:
        child.join(max(0.0, ending - time.monotonic()))
        child.kill()


def _at_exit() -> None:
    if hasattr(signal, "SIGCHLD"):
        # torch would report each of them as an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_workers()


def run_seed() -> int:
    """The seed that Lightning's `seed_everything` was given, the same on all devices; 0 if none."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mixed(*numbers: int) -> int:
    """One seed in [0, 2^64) from several integers >= 0; near ones give independent streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
