from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mortal import Death, plain_sgd, train_together
from support.training import DEMO, SMALL

from cfmask import ShiftReport, load_classifier
from cfmask.commands.train_model import train
from cfmask.methods import Method

# Relative feature distance is measured in units of the device's own batch: another loss on two.
ONE = [
    *["--config", DEMO, *SMALL, "--trainer.max_epochs=1"],
    *["--model.distance=feature", "--model.distill_weight=30"],
    "--model.counterfactual.fill.donors=all",
]


def change(run: Path) -> torch.Tensor:
    """All weights that the training changed, less their starting point."""
    start, tuned = load_classifier(run, "pretrained.safetensors"), load_classifier(run)
    pairs = zip(tuned.parameters(), start.parameters())
    return torch.cat([(a - b).detach().flatten() for a, b in pairs])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "configure_optimizers", plain_sgd)
        train([*ONE, f"--run={folder}"])
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    changes = [change(run) for run in (one, other)]
    assert changes[0].norm() > 0.1
    assert (changes[0] - changes[1]).abs().max() < 1e-5
    assert (changes[0] - changes[1]).norm() < 1e-5
    rows = [
        [row for row in ShiftReport.load(run / "report.json").rows if row.metric == "accuracy"]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]


def test_two_processes_train_as_one_does_and_write_one_report(alone, tmp_path):
    codes = train_together([*ONE, f"--run={tmp_path / 'two'}", "--data.batch_size=4"], 2)
    assert codes == [0, 0]
    assert_same_training(alone, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "nodes", "options"),
    [
        (2, 2, ["--data.batch_size=4"]),
        (2, 1, ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2"]),
        (4, 2, ["--data.batch_size=2"]),
    ],
)
def test_more_processes_and_machines_train_as_one_does(alone, tmp_path, world, nodes, options):
    # Which donors a batch has depends on how it is cut, so that only black patches compare.
    cut = ["--model.counterfactual.mask=ObjectMask", "--model.counterfactual.fill=ConstantFill"]
    ours = [*ONE, *cut] if "accumulate" in str(options) else ONE
    if ours != ONE:
        alone = tmp_path / "alone"
        assert train_together([*ours, f"--run={alone}"], 1) == [0]
    codes = train_together([*ours, f"--run={tmp_path / 'run'}", *options], world, nodes)
    assert codes == [0] * world
    assert_same_training(alone, tmp_path / "run")


@pytest.mark.slow
def test_three_processes_end_with_a_last_batch_of_one_left_out(tmp_path):
    # 38 images: 12 on each of 3 devices, and two that one epoch leaves out.
    options = ["--data.train_images=39", "--data.batch_size=4"]
    assert train_together([*ONE, f"--run={tmp_path / 'run'}", *options], 3) == [0, 0, 0]
    assert torch.isfinite(change(tmp_path / "run")).all()


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path, dying):
    options = [f"--run={tmp_path / 'run'}", "--data.batch_size=4"]
    deaths = {dying: Death("cfmask.methods:Method.training_step", 3)}
    codes = train_together([*ONE, *options], 2, deaths=deaths)
    assert codes[dying] == -9
    # Not ended by the test after its minute.
    assert codes[1 - dying] not in (0, -9)
