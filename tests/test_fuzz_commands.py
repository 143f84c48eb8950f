"""Commands on damaged folders, with odd settings and names: one line or a right answer, no more."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import pytorch_lightning as pl
import yaml
from hypothesis import strategies as st
from PIL import Image
from support.fuzzing import edited, fuzz, quietly
from support.hostile import BAIT, NAMES, PLANTED, replace, rewrite, said, watched
from support.old_files import OLD
from support.pictures import noise
from support.shard_trees import plant_photos

from cfmask.commands import train_model
from cfmask.commands.main import main
from cfmask.commands.train_model import train
from cfmask.data.packing import pack
from cfmask.exporting.writing import export


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, exports, shards and pictures, which the cases copy and break."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(OLD, root, dirs_exist_ok=True)
    (root / "timm.safetensors").write_bytes(
        lzma.decompress((root / "timm.safetensors.xz").read_bytes())
    )
    (root / "timm.safetensors.xz").unlink()
    (root / "run" / "planted.py").write_text(PLANTED)
    (root / "planted.py").write_text(PLANTED)
    for number in range(2):
        Image.fromarray(noise(20, 30, seed=number)).save(root / f"{number}.png")
    here = os.getcwd()
    os.chdir(root)
    try:
        fresh = "--model.classifier.pretrained=null"
        train(["--config=run/config.yaml", "--run=new", fresh, "--trainer.precision=32-true"])
        for source, form in (("run", "safetensors"), ("new", "open_clip")):
            export(source, form, form)
        export("timm.safetensors", "timm", "timm")
        pack(plant_photos(root / "photos"), root / "shards", shard_size=9)
    finally:
        os.chdir(here)
    return root


EVAL = ("--images=4", "--pictures=1")
FEW = ("--lime.samples=4", "--hidings=grey")
COMMANDS = (
    ("eval", "run", *EVAL),
    ("eval", "new", *EVAL),
    ("eval", "openclip.safetensors", "run/report.json", "--images=20"),
    ("eval", "new/weights.safetensors", "--out=out", "--predictions", *EVAL),
    ("predict", "run", "0.png", "1.png"),
    ("predict", "new/checkpoints/last.ckpt", "0.png"),
    ("predict", "safetensors", "0.png"),
    ("predict", "open_clip", "0.png"),
    ("predict", "timm", "0.png", "--json"),
    ("show", "0.png", "1.png", "--label=three", "--checkpoint=run", "--out=show.png"),
    ("show", "0.png", "--label=three", "--checkpoint=new", "--out=show.png"),
    ("export", "new", "--to=safetensors", "--out=out", "--alpha=0.5"),
    ("export", "run", "--to=open_clip", "--out=open_clip", "--overwrite"),
    ("export", "new", "--average", "run", "--to=safetensors", "--out=out"),
    ("merge", "run", "--by=wise", "--alpha=0.5", "--out=out"),
    ("merge", "new", "new/pretrained.safetensors", "--by=greedy", "--out=out"),
    ("explain", "0.png", "--model=run", "--label=three", "--side=12", *FEW, "--out=out.png"),
    ("missingness", "run", "--data=photos/ant", "--images=2", "--side=12", *FEW[1:], "--out=out"),
    ("predict", "run", "photos", "--out=out.csv"),
    ("train", "--config=new/config.yaml", "--run=other"),
    ("train", "--config=new/config.yaml", "--run=new"),
    ("train", "--config=new/config.yaml", "--run=new", "--resume"),
    ("train", "--config=run/config.yaml", "--run=new", "--overwrite"),
    ("pack", "shards", "--verify", "--workers=0"),
    ("pack", "photos", "--out=out", "--workers=0", "--shard_size=9"),
    ("check", "--data_root=photos"),
)
OPTIONS = {
    "eval": "wise fit images seed batch_size workers precision decoder unreadable predictions "
    "pictures shifts data_root out show allow_incomplete reuse descriptions normalise "
    "crop_selection",
    "predict": "top class_names json descriptions normalise",
    "show": "label checkpoint class_names relevance mask fill out seed",
    "export": "to out alpha average overwrite",
    "train": "model data model.lr model.counterfactual.mask model.relevance data.batch_size run "
    "trainer.precision trainer.devices trainer.max_epochs evaluation.shifts evaluation.wise "
    "evaluation.images evaluation.workers evaluation.batch_size checkpoints.every_steps "
    "skip_nonfinite probe seed_everything",
    "merge": "by out alpha start batch_size workers seed overwrite",
    "explain": "by label class_names hidings relevance side lime.samples top out seed",
    "missingness": "data masks hidings orders relevance side most_segments images out seed "
    "samples measures",
    "pack": "out shard_size verify",
    "check": "data_root shifts verify",
}
VALUES_ON_LINE = (
    *NAMES, None, True, False, -3, 0, 1, 2, 40, 0.5, -1e-9, float("nan"), float("inf"), [], {}, [1],
    {"a": 1}, {"class_path": "planted.Mask"}, [[[]]] * 3, 2**31, -(2**63), 10**400,
    {"class_path": "subprocess.Popen", "init_args": {"args": "ls"}},
)  # fmt: skip
KINDS = ("folder", "loop", "dangling", "linked", "pipe", "empty", "other", "gone", "renamed")


def anything(rng: Random) -> object:
    """A value that has no business where it will stand, or a text of any characters."""
    if rng.random() < 0.8:
        return rng.choice(VALUES_ON_LINE)
    return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)])) for _ in range(6))


def setting(rng: Random) -> object:
    """A value for an option: of its type half of the time."""
    return rng.choice([-3, 0, 1, 2, 7, 0.5, True, False]) if rng.random() < 0.5 else anything(rng)


def change(rng: Random) -> tuple[float, str, object]:
    kind = rng.choice(["set", "set", "set", "drop", "wrap", "rename"])
    return rng.random(), kind, anything(rng)


def edit(rng: Random) -> tuple[str, float, bytes]:
    kind = rng.choice(["flip", "cut", "drop", "repeat", "insert"])
    return kind, rng.random(), rng.randbytes(rng.randrange(9))


def harm(root: Path, named: set[str], rng: Random) -> None:
    """Damage up to three files, of those that a command reads."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    read = [path for path in files if set(path.relative_to(root).parts) & named] or files
    for _ in range(rng.randrange(4)):
        file = rng.choice(read)
        if not file.is_file() or file.is_symlink():
            continue
        kind = rng.choice(["change", "change", "bytes", "replace"])
        if kind == "bytes":
            file.write_bytes(edited(file.read_bytes(), [edit(rng) for _ in range(2)]))
        elif kind == "change":
            # What is damaged already holds nothing to change.
            with contextlib.suppress(ValueError, yaml.YAMLError, struct.error, RecursionError):
                rewrite(file, [change(rng) for _ in range(rng.randrange(1, 4))])
        else:
            replace(file, rng.choice(KINDS), files, rng.random())


def run_command(words: Sequence[str]) -> None:
    """A command as a whole, but for the training itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", lambda *args, **options: None)
        patch.setattr(train_model, "_finish", lambda cli: None)
        report = train_model._report
        kept = lambda cli, runs: report(cli, runs) if cli.finished else None  # noqa: E731
        patch.setattr(train_model, "_report", kept)
        main(list(words))


def check_command(runs: Path, case: int, work: Path) -> None:
    """A command on damaged folders, with odd options, says what is wrong in one line or works."""
    rng = Random(case)
    shutil.copytree(runs, work / "tree")
    os.chdir(work / "tree")
    command = rng.choice(COMMANDS)
    named = {part for word in command for part in re.split("[=/]", word)}
    harm(work / "tree", named, rng)
    given = rng.choices(OPTIONS[command[0]].split(), k=rng.randrange(3))
    words = [*command, *(f"--{option}={setting(rng)}" for option in given)]
    # The user may write where he likes: here beside the tree, and not further up.
    words = [word.replace("../../", "../") for word in words]
    with watched(work) as watch:
        code, lines = said(run_command, words)
    # The words of the user, and the config that he gives to a training, may name classes.
    free = command[0] == "train" or any(bait in word for word in words for bait in BAIT)
    wrong = [w for w in watch.wrong if not (free and w.startswith("an import"))]
    assert not wrong, (words, wrong)
    assert code in (0, 2) or (code == 1 and command[0] == "check"), (words, code)
    assert len(lines) == (code == 2), (words, lines)
    assert free or not list(work.rglob("trace"))


def test_an_address_in_place_of_a_part_is_not_looked_up(tmp_path):
    address = "http://127.0.0.1:9/x"
    config = str(Path(__file__).parents[1] / "configs" / "demo.yaml")
    words = [f"--config={config}", f"--run={tmp_path}/run", f"--model.relevance={address}"]
    with watched(tmp_path) as watch:
        code, lines = said(train, words)
    assert code == 2 and len(lines) == 1 and address in lines[0]
    assert not watch.wrong


CASES = {"case": st.integers(0, 2**63)}


@fuzz(20, **CASES)
def test_hostile_runs_settings_and_names(runs, tmp_path, case):
    quietly(check_command, tmp_path / "work", runs, case)


@pytest.mark.slow
@fuzz(3000, **CASES)
def test_many_hostile_runs_settings_and_names(runs, tmp_path, case):
    quietly(check_command, tmp_path / "work", runs, case)
