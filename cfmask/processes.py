"""Processes: evaluation on several at a time, each with its own part of every set.

A set is cut into as many stretches as there are processes, which differ by one image at most and
are not padded, so that every image counts once.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cfmask.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=1)


# The default group, and the one beside it that exchanges main memory.
_BESIDE: dict[str, Any] = {}
# Whether this process counts itself alone.
_ALONE = contextvars.ContextVar("alone", default=False)


def rank() -> int:
    """Number of this process; 0 where there is one."""
    return dist.get_rank() if _together() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Context in which this process counts as the only one: it waits for no other."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


def own_part(length: int) -> range:
    """This process's stretch of `length` images; empty if there are fewer than processes."""
    return range(rank() * length // count(), (rank() + 1) * length // count())


def gathered(make: Callable[[], T]) -> list[T]:
    """Results of `make` in all processes, in their order, for every process.

    Raises:
        InputError: in all processes, if it was raised in one of them.
    """
    if count() == 1:
        return [make()]
    own: Any
    try:
        own = (make(), "")
    except InputError as error:
        own = (None, str(error))
    everyone: list[Any] = [None] * count()
    dist.all_gather_object(everyone, own, group=_group())
    for _, refusal in everyone:
        if refusal:
            raise InputError(refusal)
    return [result for result, _ in everyone]


def from_first(make: Callable[[], T]) -> T:
    """Result of `make`, which runs in the first process alone, for every process."""
    if count() == 1:
        return make()

    def first() -> T | None:
        if rank():
            return None
        with alone():
            return make()

    found = gathered(first)
    result: Any = found[0]
    return result  # type: ignore[no-any-return]


def anywhere(flag: Tensor) -> Tensor:
    """Whether a flag is True in any process, bool () on the device; the host does not wait."""
    if count() == 1:
        return flag
    told = flag.int()
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return told.bool()


def own_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """This device's rows of random numbers for the images of all devices.

    With generators seeded alike, an image gets what it would get on one device alone: device r of W
    has the images r, r + W, r + 2 W, … of a step.
    """
    return draw(rows * count())[rank() :: count()]


def rows_of_all(own: Tensor) -> Tensor:
    """The rows of all devices, equally many each, in the order that they have on one device.

    Their mean gradient over the devices is that of a loss which one device computes of all rows:
    it flows into each device's own rows, W times there, as W devices divide it.
    """
    if count() == 1:
        return own
    shares = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(shares, own.detach().contiguous())
    if own.requires_grad:
        shares[rank()] = own.detach() + count() * (own - own.detach())
    return torch.stack(shares, 1).flatten(0, 1)


def device() -> torch.device:
    """The GPU of this process by LOCAL_RANK, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun has started, if it has, and leave them at the end."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and count() == 1
    if started:
        # Only counts and answers are exchanged, which lie in the main memory. A process that has
        # finished its part of a set waits for the slowest one.
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        if started:
            dist.destroy_process_group()


def _group() -> Any:
    """A group that exchanges main memory, where the default one exchanges a GPU's.

    It is made once for a default group, and ends with it.
    """
    if dist.get_backend() == "gloo":
        return None
    world = dist.group.WORLD
    if _BESIDE.get("world") is not world:
        _BESIDE.update(world=world, group=dist.new_group(backend="gloo", timeout=PATIENCE))
    return _BESIDE["group"]
