from __future__ import annotations

import re
import shlex
import sys

import pytest
import torch
from support.places import ROOT
from support.training import DEMO, FAST, photos

import cfmask
from cfmask.commands.main import main
from cfmask.commands.train_model import train

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(("python ", "cfmask "))]
INLINE = re.findall(r"`((?:python (?:train|eval)\.py|cfmask \w+) [^`]*)`", README)
PROGRAMS = {
    "train.py": "train",
    "eval.py": "eval",
}
# What is not at hand, and what stands in for it.
STAND_INS = {
    "open_clip:ViT-B-32-quickgelu/openai": "timm:test_vit/random",
    "timm:resnet50": "timm:test_resnet/random",
}


def options(line: str) -> list[str]:
    """What makes a command of the README small and offline."""
    if "help" in line or line.startswith("cfmask check "):
        return []
    if " photos" in line:
        return [
            "--model.classifier=OpenClipClassifier",
            "--model.classifier.model=tiny-clip",
            "--batch-size=8",
            "--workers=0",
            "--epochs=1",
            "--trainer.accelerator=cpu",
            "--evaluation.pictures=0",
        ]
    if "timm:" in line:
        return ["--allow_incomplete", "true", "--pictures=0"]
    if "eval" in line.split()[1]:
        return ["--images=10", "--pictures=0"]
    small = ["--epochs=1", "--evaluation.images=10", "--evaluation.pictures=0"]
    if "demo_cnn" in line:
        small += ["--data.train_images=16", "--data.val_images=8", "--batch-size=8"]
    if line != LINES[0].split(" && ")[1]:
        # The first line has the plain run beside it.
        small += ["--baseline=false"]
    if "runs/demo" in line or "demo_cnn" in line:
        small += ["--shifts=digits/id"]
    return [*FAST, *small]


def run(line: str) -> None:
    for name, stand_in in STAND_INS.items():
        line = line.replace(name, stand_in)
    program, name, *args = shlex.split(line)
    command = name if program == "cfmask" else PROGRAMS[name]
    main([command, *args, *(options(line) if command in PROGRAMS.values() else [])])


def test_the_two_lines_stand_at_the_top():
    assert README.splitlines()[2:6] == [
        "```",
        "pip install -e . && python train.py --config configs/demo.yaml",
        "pip install -e '.[test]' && pytest",
        "```",
    ]


def test_every_time_is_said_with_its_processor():
    texts = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S).split("\n\n")
    timed = [text for text in texts if re.search(r"\d s\b|\bminutes?\b|\bseconds\b", text)]
    assert timed and all("EPYC" in text for text in timed), timed


@pytest.mark.drawn
def test_every_command_runs_in_the_order_of_the_text(tmp_path, monkeypatch, capsys, everything):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").symlink_to(everything)
    photos(tmp_path / "photos")
    demo = LINES[0].split(" && ")[1]
    seen = {}
    for line in [demo, *COMMANDS, *INLINE]:
        if "help" in line or line.startswith("cfmask check "):
            with pytest.raises(SystemExit) as end:
                run(line)
            # The tree has but a few pictures of each set, which the check says.
            assert end.value.code in ([0, None] if "help" in line else [1])
        else:
            run(line)
        seen[line] = capsys.readouterr().out
        assert seen[line]
    assert "MaskedDistillation" in seen["cfmask train --help"]
    assert "--trainer.val_check_interval" in seen["cfmask train --help-all"]
    assert "distill_weight" in seen["cfmask train --model.help MaskedDistillation"]
    for name in re.findall(r"^\| `([\w./`, ]+)` \|", README, re.M):
        for file in name.replace("`", "").split(", "):
            assert (tmp_path / "runs" / "demo" / file).exists(), file
    assert {"demo: tuned", "demo-plain: tuned"} <= set(seen[demo].replace("  ", "\n").splitlines())


def test_the_python_example_runs(tiny_clip, digit_batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    cfmask.save_classifier(tiny_clip, tmp_path / "runs" / "demo" / "weights.safetensors")
    (example,) = (block for kind, block in BLOCKS if kind == "python")
    images, labels = digit_batch
    names = {"images": images, "labels": labels}
    exec(example, names)
    assert names["logits"].shape == (8, 10)
    assert names["maps"].shape == (8, 6, 6)
    assert not torch.equal(names["counterfactual"], images)


@pytest.mark.slow
def test_a_mask_of_ones_own_works_by_its_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_module.py").write_text(
        "from cfmask.counterfactual import PatchMask\n"
        "class MyMask(PatchMask):\n"
        "    def __call__(self, relevance):\n"
        "        return relevance > relevance.mean((1, 2), keepdim=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mask = "--model.counterfactual.mask=my_module.MyMask"
    args = ["--config", DEMO, mask, "--run=run", *FAST]
    train(args)
    assert "my_module.MyMask" in (tmp_path / "run" / "config.yaml").read_text()
    assert "my_module" in sys.modules


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"(?:\]\(|src=\")(?!http)([^)#\"]+)", README):
        assert (ROOT / target).exists(), target
