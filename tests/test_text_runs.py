"""Runs of methods with the text tower: from the command to the report, on, and out again."""

from __future__ import annotations

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support.mortal import train_together
from support.training import DEMO

from cfmask import ShiftReport, digits, load_classifier
from cfmask.checkpoint import AVERAGE
from cfmask.commands.train_model import train
from cfmask.exporting.writing import export
from cfmask.weights import read_checkpoint

WEIGHTS = "weights.safetensors"


def words(run: Path, method: str, *more: str) -> list[str]:
    """Six steps in two epochs, a checkpoint after each second step."""
    return [
        *["--config", DEMO, "--method", method, f"--run={run}", "--lr=1e-3"],
        *["--trainer.max_epochs=2", "--trainer.precision=32-true", "--data.train_images=24"],
        *["--data.val_images=10", "--data.batch_size=8", "--checkpoints.every_steps=2"],
        *["--evaluation.shifts=[digits/id]", "--evaluation.images=20", "--evaluation.pictures=0"],
        *["--logger=csv", *more],
    ]


def goes_on_to_the_same(run: Path, method: str, folder: Path, *more: str) -> None:
    """Go on from the second step, and compare what a run ends with."""
    copy = Path(shutil.copytree(run, folder))
    ends = [copy / WEIGHTS, copy / AVERAGE, *copy.glob("checkpoints/*.ckpt")]
    for path in ends:
        if "0002.ckpt" not in path.name:
            path.unlink(missing_ok=True)
    train(words(copy, method, *more, "--resume=true"))
    states = [read_checkpoint(each / "checkpoints" / "last.ckpt") for each in (run, copy)]
    for one, other in zip(*(state["state_dict"].items() for state in states)):
        assert one[0] == other[0] and torch.equal(one[1], other[1]), one[0]
    one, other = (state["optimizer_states"][0]["state"] for state in states)
    assert all(torch.equal(one[k][name], other[k][name]) for k in one for name in one[k])
    for name in (WEIGHTS, *([AVERAGE] if (run / AVERAGE).is_file() else [])):
        one, other = load_file(run / name), load_file(copy / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name


def head_of(run: Path, text: dict[str, torch.Tensor]) -> torch.Tensor:
    """The zero-shot head that open_clip makes with the weights of a text tower."""
    tiny = str(Path(load_classifier.__code__.co_filename).parent / "tiny_clip")
    clip = open_clip.create_model(f"local-dir:{tiny}")
    assert not clip.load_state_dict(text, strict=False).unexpected_keys
    tokenizer = open_clip.tokenizer.SimpleTokenizer(f"{tiny}/merges.txt.gz", context_length=16)
    templates = load_classifier(run).spec.options["templates"]
    makers = [lambda name, t=t: t.format(name) for t in templates]
    head = open_clip.build_zero_shot_classifier(clip, tokenizer, digits.CLASS_NAMES, makers, 10)
    return clip.logit_scale.exp() * head.T


def test_a_run_ends_as_an_ordinary_classifier(tmp_path):
    run = tmp_path / "run"
    train(words(run, "TRACER", "--average=ema:0.6"))
    rows = set(ShiftReport.load(run / "report.json").models)
    assert rows == {"zero-shot", "tuned", "average", "WiSE-FT 0.5"}
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    state, prefix = best["state_dict"], "text.clip."
    text = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    start, tuned = (load_classifier(run, name) for name in ("pretrained.safetensors", WEIGHTS))
    assert torch.allclose(tuned.head.weight, head_of(run, text), atol=1e-4)
    assert (tuned.head.weight - start.head.weight).norm() > 0.1
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    (kept,) = (v for k, v in last["callbacks"].items() if "Average" in k)
    text = {k.removeprefix("text.clip."): v for k, v in kept["weights"].items() if "text." in k}
    average = load_classifier(run, AVERAGE)
    assert torch.allclose(average.head.weight, head_of(run, text), atol=1e-4)
    assert (average.head.weight - tuned.head.weight).norm() > 0.01
    export(str(run), "safetensors", str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    images = torch.rand(4, 3, 48, 48)
    assert torch.equal(load_classifier(file)(images), tuned(images))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["FLYP", "TRACER", "CaRot", "StarFT", "CARFT", "LipsumFT"])
def test_every_method_goes_on_bit_by_bit(method, tmp_path):
    more = ("--average=ema:0.6", "--checkpoints.keep=9")
    train(words(tmp_path / "run", method, *more))
    goes_on_to_the_same(tmp_path / "run", method, tmp_path / "copy", *more)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["FLYP", "TRACER", "StarFT", "LipsumFT"])
def test_two_processes_contrast_as_one_does(method, tmp_path):
    runs = []
    for world in (1, 2):
        runs.append(tmp_path / str(world))
        args = words(runs[-1], method, "--trainer.max_epochs=1", f"--data.batch_size={8 // world}")
        assert train_together(args, world) == [0] * world
    (one, other), start = (
        map(load_classifier, runs),
        load_classifier(runs[0], "pretrained.safetensors"),
    )
    weights = [
        torch.cat([p.detach().flatten() for p in classifier.parameters()])
        for classifier in (one, other, start)
    ]
    moved = (weights[0] - weights[2]).norm()
    assert moved > 0.01 and (weights[0] - weights[1]).norm() < 1e-3 * moved
