from __future__ import annotations

import itertools
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, Dataset

from cfmask import DigitsData, InputError
from cfmask.data.datamodule import TrainingData
from cfmask.data.epochs import EpochSampler, Seeded, end_workers, mixed, start_worker
from cfmask.images import Preprocess


def draws(epoch: int, *args: int, **kwargs: int) -> list[int]:
    sampler = EpochSampler(*args, **kwargs)
    sampler.set_epoch(epoch)
    return list(sampler)


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_every_image_comes_once_an_epoch_in_another_order_each_time():
    orders = [[draw - 23 * epoch for draw in draws(epoch, 23, 4)] for epoch in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    sampler = EpochSampler(50, 4, seed=7)
    for epoch in (0, 1, 5, 2):
        sampler.set_epoch(epoch)
        first = list(sampler)
    torch.manual_seed(2)
    assert draws(2, 50, 4, seed=7) == first
    assert draws(2, 50, 4, seed=8) != first


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("count", [24, 25, 50, 59])
def test_a_step_holds_the_same_images_on_any_number_of_devices(count, world):
    size = 12
    alone = batches(draws(3, count, size), size)
    ranks = [
        batches(draws(3, count, size // world, rank=r, world=world), size // world)
        for r in range(world)
    ]
    steps = [{i for rank in step for i in rank} for step in zip(*ranks, strict=True)]
    full = count // size
    assert steps[:full] == [set(batch) for batch in alone[:full]]


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_devices_share_an_epoch_evenly_and_make_no_batch_of_one(world, size):
    for count in range(2 * world, 40):
        ranks = [draws(1, count, size, rank=r, world=world) for r in range(world)]
        every = [draw for rank in ranks for draw in rank]
        assert len(set(every)) == len(every)
        assert len({len(rank) for rank in ranks}) == 1
        assert size == 1 or all(len(batch) > 1 for rank in ranks for batch in batches(rank, size))
        # Fewer than a row is left out, or that and the lone image of each device.
        assert count - len(every) < 2 * world
        assert len(ranks[0]) == len(EpochSampler(count, size, world=world))


def test_an_epoch_leaves_out_other_images_than_the_one_before():
    left = [set(range(9)) - {d - 9 * e for d in draws(e, 9, 4)} for e in range(6)]
    assert {len(one) for one in left} == {1}
    assert len(set().union(*left)) > 1


def test_a_pass_can_begin_within_an_epoch():
    sampler = EpochSampler(20, 4, seed=3)
    whole = list(sampler)
    sampler.skip = 8
    assert len(sampler) == 20
    assert list(sampler) == whole[8:]
    assert list(sampler) == whole


@pytest.mark.parametrize(("count", "size", "world"), [(0, 1, 1), (1, 4, 1), (3, 4, 2), (1, 1, 2)])
def test_too_few_images_for_a_batch_are_refused(count, size, world):
    with pytest.raises(InputError, match=f"got {count}"):
        EpochSampler(count, size, world=world)


class Noise(Dataset):
    """Twenty images of chance; the label is the index."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3), index


def test_chance_depends_on_seed_epoch_and_image_alone():
    data = Seeded(Noise(), seed=5)
    keys = [(seed, draw) for seed in (5, 6) for draw in range(60)]
    made = {key: Seeded(Noise(), key[0])[key[1]] for key in reversed(keys)}
    assert all(made[5, draw][1] == draw % 20 for draw in range(60))
    assert len({tuple(noise.tolist()) for noise, _ in made.values()}) == 120
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert all(torch.equal(data[draw][0], made[5, draw][0]) for draw in range(60))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(workers):
    torch.manual_seed(workers)
    data = Seeded(Noise(), seed=5)
    loader = DataLoader(data, 4, sampler=EpochSampler(20, 4, seed=5), num_workers=workers)
    order = draws(0, 20, 4, seed=5)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert labels.tolist() == order
    assert torch.equal(images, torch.stack([data[draw][0] for draw in order]))


def test_seeds_of_neighbours_differ():
    numbers = list(itertools.product(range(8), repeat=3))
    assert len({mixed(*three) for three in numbers}) == len(numbers)


class Recorder(pl.LightningModule):
    """Notes the labels of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, index):
        self.seen.setdefault(self.current_epoch, []).extend(batch[1].tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class NoiseData(TrainingData):
    """Twenty images whose label is their index."""

    class_names = tuple(map(str, range(20)))

    def load(self, preprocess):
        return Noise(), Noise()

    def setup(self, stage):
        self.prepare(Preprocess())


def fit(epochs: int, workers: int, strategy="auto", **kwargs) -> tuple[Recorder, pl.Trainer]:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        strategy=strategy,
    )
    trainer.fit(module, NoiseData(4, workers), **kwargs)
    return module, trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_order_of_its_epoch(tmp_path, workers, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    whole, _ = fit(3, workers)
    assert whole.seen == {e: [d % 20 for d in draws(e, 20, 4, seed=11)] for e in range(3)}
    _, first = fit(1, workers)
    first.save_checkpoint(tmp_path / "one.ckpt")
    rest, _ = fit(3, workers, ckpt_path=tmp_path / "one.ckpt")
    assert rest.seen == {epoch: whole.seen[epoch] for epoch in (1, 2)}


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


class SecondOfTwo(SingleDeviceStrategy):
    """One device that says it is the second of two."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.world_size, self.global_rank = 2, 1


def test_lightning_leaves_the_share_of_a_device_alone(monkeypatch):
    connector = pl.trainer.connectors.accelerator_connector._AcceleratorConnector
    monkeypatch.setattr(connector, "is_distributed", True)
    module, _ = fit(1, 0, SecondOfTwo())
    assert module.seen[0] == draws(0, 20, 4, rank=1, world=2)


def test_the_seed_of_the_run_decides_the_order(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    orders = []
    for seed in (0, 0, 1):
        pl.seed_everything(seed, verbose=False)
        data = DigitsData(train_images=20, val_images=2)
        data.setup("fit")
        orders.append(list(data.train_dataloader().sampler))
    assert orders[0] == orders[1] != orders[2]


def wait_on(path: str) -> None:
    """A worker that has begun, says so and waits."""
    start_worker(0)
    Path(path).touch()
    time.sleep(600)


def test_workers_that_ignore_signals_end_with_the_program(tmp_path):
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=wait_on, args=(str(tmp_path / "begun"),), daemon=True)
    other = context.Process(target=wait_on, args=(str(tmp_path / "other"),))
    for process in (worker, other):
        process.start()
    while not ((tmp_path / "begun").exists() and (tmp_path / "other").exists()):
        time.sleep(0.01)
    end_workers()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    # One that outlives its parent by its own wish is left alone.
    assert other.is_alive()
    other.kill()
    other.join(60)


PROGRAM = """
from cfmask import FolderData, Preprocess
data = FolderData({root!r}, batch_size=2, workers=2)
data.prepare(Preprocess((8, 8)))
batches = iter(data.val_dataloader())
next(batches)
raise SystemExit(3)
"""


@pytest.mark.slow
def test_a_program_that_ends_in_the_midst_of_an_epoch_ends(class_photos):
    words = [sys.executable, "-c", PROGRAM.format(root=str(class_photos.parent))]
    ended = subprocess.run(words, timeout=300, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (3, "")
