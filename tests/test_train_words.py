"""Short options, the brief help, and misspelt names of cfmask train."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from support.training import fails

from cfmask import InputError, TimmClassifier, save_classifier, start_from
from cfmask.commands.main import main
from cfmask.commands.train_model import command_line
from cfmask.commands.train_settings import NOT_OURS
from cfmask.commands.train_words import GROUPS, SHORT, brief_help, prepared


def config_of(capsys, *words: str) -> dict:
    """The whole configuration that a command line stands for."""
    with pytest.raises(SystemExit) as end:
        command_line([*prepared(words), "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture
def photos(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
    return str(tmp_path / "photos")


def test_a_folder_and_a_model_are_all_that_is_needed(photos, capsys):
    config = config_of(capsys, photos, "--model", "timm:test_vit/random")
    assert config["run"] == "runs/photos"
    assert config["data"]["init_args"]["root"] == photos
    assert config["evaluation"]["data_root"] == photos
    method = config["model"]["init_args"]
    assert method["classifier"]["class_path"] == "cfmask.TimmClassifier"
    assert method["classifier"]["init_args"]["model"] == "test_vit"
    assert method["classifier"]["init_args"]["pretrained"] is False
    assert (method["distance"], method["distill_weight"]) == ("relative_feature", 4)


def test_an_open_clip_model_keeps_the_papers_distance(photos, capsys):
    config = config_of(capsys, photos, "--model=open_clip:ViT-B-16-quickgelu/openai")
    method = config["model"]["init_args"]
    assert method["classifier"]["init_args"]["model"] == "ViT-B-16-quickgelu"
    assert method["classifier"]["init_args"]["pretrained"] == "openai"
    assert (method["distance"], method["distill_weight"]) == ("feature", 30)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("timm:resnet50/weights/x.pt", {"model": "resnet50", "pretrained": "weights/x.pt"}),
        ("timm:resnet50", {"model": "resnet50", "pretrained": True}),
        ("open_clip:RN50", {"model": "RN50", "pretrained": "random"}),
        ("my_nets.small:Net", {"module": "my_nets.small.Net", "head": "linear"}),
    ],
)
def test_models_by_name(what, expected, photos, capsys):
    config = config_of(capsys, photos, "--model", what)
    found = config["model"]["init_args"]["classifier"]["init_args"]
    assert {key: found[key] for key in expected} == expected


def test_a_run_or_a_weights_file_is_a_model(photos, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    save_classifier(TimmClassifier("test_vit", False, ["x", "y", "z"], image_size=64), path)
    config = config_of(capsys, photos, "--model", str(path))
    found = config["model"]["init_args"]["classifier"]
    assert found["class_path"] == "cfmask.SavedClassifier"
    assert found["init_args"]["path"] == str(path)


def test_other_classes_get_a_fresh_head(tmp_path):
    saved = TimmClassifier("test_vit", False, ["x", "y", "z"], image_size=64).eval()
    save_classifier(saved, tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 64, 64)
    same = start_from(str(tmp_path / "weights.safetensors"), ["x", "y", "z"])
    assert torch.equal(same(images), saved(images))
    other = start_from(str(tmp_path / "weights.safetensors"), ["a", "b"])
    assert torch.equal(other.features(images), saved.features(images))
    assert other(images).shape == (2, 2)
    assert (other.class_names, other.head_from) == (("a", "b"), "chance")


@pytest.mark.parametrize("said", ["--seed=-1", "--seed_everything=-1", "--seed=4294967296"])
def test_a_seed_is_refused_by_its_bounds(said, capsys):
    line = fails(capsys, "--config", "demo", said)
    assert "Expected a seed from 0 to 4294967295, but got" in line


def test_short_options_are_the_long_ones(photos, capsys):
    words = ["--lr=1e-4", "--epochs", "3", "--batch-size", "8", "--seed=5", "--run", "x"]
    more = ["--workers=1", "--shifts", "folders/a,digits", "--wise=0.25", "--batch_size=16"]
    config = config_of(capsys, photos, *words, *more)
    assert config["model"]["init_args"]["lr"] == 1e-4
    assert config["trainer"]["max_epochs"] == 3
    assert config["data"]["init_args"]["batch_size"] == 16
    assert config["data"]["init_args"]["workers"] == config["evaluation"]["workers"] == 1
    assert config["seed_everything"] == 5
    assert config["run"] == "x"
    assert config["evaluation"]["shifts"] == ["folders/a", "digits"]
    assert config["evaluation"]["wise"] in ("0.25", [0.25])
    for said in (["--evaluation.shifts", "digits/id,digits"], ['--evaluation.shifts=["digits"]']):
        shifts = config_of(capsys, photos, *said)["evaluation"]["shifts"]
        assert shifts == (["digits/id", "digits"] if "," in said[-1] else ["digits"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mask", "ContextMask"], {"threshold": 0.5}),
        (["--mask", "ContextMask", "--fill", "MultiFill"], {"threshold": 0.3}),
        (["--fill", "MultiFill"], {"threshold": 0.6}),
        (["--mask", "RandomMask", "--fill", "NoFill"], {"probability": 0.75, "exact": True}),
        (
            ["--mask", "ContextMask", "--model.counterfactual.mask.threshold=0.2"],
            {"threshold": 0.2},
        ),
    ],
)
def test_masks_by_name_have_the_papers_thresholds(words, expected, capsys):
    config = config_of(capsys, "--config", "demo", *words)
    mask = config["model"]["init_args"]["counterfactual"]["init_args"]["mask"]
    assert {key: mask["init_args"][key] for key in expected} == expected


def test_a_method_by_name(capsys):
    config = config_of(capsys, "--config", "demo", "--method", "FineTuning", "--lr", "1e-3")
    assert config["model"]["class_path"] == "cfmask.FineTuning"
    assert config["model"]["init_args"]["lr"] == 1e-3
    assert "counterfactual" not in config["model"]["init_args"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bathc-size", "3"], "There is no option --bathc-size. Nearest: --batch-size"),
        (["--learning_rate", "3"], "There is no option --learning_rate."),
        (["--lr"], "Expected a value after --lr, but got none."),
        (["--lr", "--epochs", "2"], "Expected a value after --lr, but got none."),
        (["nowhere"], "Expected a folder of images or an option, but got 'nowhere'"),
        (["--model", "tim:resnet50"], "Expected --model timm:NAME"),
    ],
)
def test_what_is_wrong_is_one_line(words, said, capsys):
    with pytest.raises(InputError, match=re.escape(said)):
        prepared(words)
    with pytest.raises(SystemExit) as end:
        main(["train", *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_the_help_names_options_that_exist(capsys):
    with pytest.raises(SystemExit):
        command_line(["--help-all"])
    every = capsys.readouterr().out
    assert max(map(len, brief_help().splitlines())) <= 80
    for option in re.findall(r"^  (--[\w-]+)", brief_help(), re.M):
        longs = SHORT.get(option, (option,))
        for long in longs:
            group = long.removeprefix("--").split(".")[0]
            assert long in every or group in ("model", "data"), long
    # Those of Lightning that methods answer for are refused with a word on why.
    for group in set(GROUPS) - set(NOT_OURS):
        assert f"--{group}" in every
    named = set(re.findall(r"^  -?-?[\w, -]*--([a-z_]+)\b(?!\.)", every, re.M))
    known = {*GROUPS, "config", "help", "print_config", "help-all", "seed_everything"}
    own = {option.removeprefix("--") for option in re.findall(r"--\w+", brief_help())}
    assert named <= known | own
