"""Training commands in processes that can be killed, for tests.

A server that has imported everything forks them, so that each costs no start-up.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["cfmask.train_command", "cfmask.gallery"])


class Death(NamedTuple):
    """A signal that a process gets at the n-th call of a function, before this does anything."""

    where: str
    call: int
    number: int = signal.SIGKILL


def train_in_child(args: Sequence[str], death: Death | None = None, limit: int = 0) -> int:
    """Exit code of a training command, or minus the signal that ended it.

    Args:
        args: of the command.
        death: when it dies.
        limit: bytes that fit into one file; 0 for no limit.
    """
    child = SERVER.Process(target=_train, args=(list(args), death, limit))
    child.start()
    child.join()
    return child.exitcode


def _train(args: list[str], death: Death | None, limit: int) -> None:
    import torch

    from cfmask.train_command import train

    torch.set_num_threads(1)
    if limit:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if death:
        _die_at(death)
    train(args)


def _die_at(death: Death) -> None:
    module, *path = death.where.split(":")
    owner = importlib.import_module(module)
    for name in path[0].split(".")[:-1]:
        owner = getattr(owner, name)
    name = path[0].split(".")[-1]
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == death.call:
            os.kill(os.getpid(), death.number)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
