"""Training commands in processes that can be killed, for tests.

A server that has imported everything forks them, so that each costs no start-up.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SERVER = multiprocessing.get_context("forkserver")
# The second line is what a run imports when it needs it.
PRELOADED = """cfmask.commands.train_model cfmask.runs.gallery cfmask.families.openclip
timm skimage.data sklearn.linear_model torch.utils.tensorboard"""
SERVER.set_forkserver_preload(PRELOADED.split())


class Death(NamedTuple):
    """A signal that a process and its workers get at the n-th call of a function, at its start."""

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


def train_together(
    args: Sequence[str], world: int, nodes: int = 1, deaths: dict[int, Death] | None = None
) -> list[int | None]:
    """Exit codes of a training command on several processes, as torchrun starts them, with SGD.

    Args:
        args: of the command.
        world: number of processes.
        nodes: on how many machines they believe to be.
        deaths: by process, when it dies. The others are ended a minute later, with code None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = world // nodes
    options = [f"--trainer.devices={each}", f"--trainer.num_nodes={nodes}"]
    children = []
    for rank in range(world):
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % each}
        places |= {"GROUP_RANK": rank // each, "LOCAL_WORLD_SIZE": each}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        death = (deaths or {}).get(rank)
        work = ([*args, "--trainer.strategy=ddp", *options], death, 0, places)
        children.append(SERVER.Process(target=_train, args=work))
        children[-1].start()
    for child in children:
        child.join(60 if deaths else 300)
        child.kill() if child.exitcode is None else None
    return [child.exitcode for child in children]


def hold(folder: Path, there: Any) -> None:
    """Hold a run folder until killed, and say when it is held."""
    from cfmask.runs.run_folder import RunFolder

    with RunFolder(folder).held():
        there.set()
        time.sleep(600)


def plain_sgd(method: Any) -> Any:
    """Optimiser whose steps are the gradients; AdamW makes whole steps of rounding errors."""
    import torch

    trained = [p for p in method.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, 0.1, weight_decay=0.01)


def _train(
    args: list[str], death: Death | None, limit: int, places: dict[str, object] | None = None
) -> None:
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    from cfmask.commands.train_model import train
    from cfmask.methods import Method

    torch.set_num_threads(1)
    if places:
        Method.configure_optimizers = plain_sgd
        os.environ.update({name: str(value) for name, value in places.items()})
        # A process of torchrun has the variables when it imports Lightning.
        rank_zero_only.rank = places["RANK"]
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
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid, death.number)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
