from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import open_clip
import pytest
import recipes
import timm
import torch
import yaml
from PIL import Image
from support.training import photos

from cfmask import Distillation, FolderData, InputError, ShiftReport, load_classifier, wordnet
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.train_model import TrainCLI, command_line, train
from cfmask.images import Preprocess

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RECIPES = ROOT / "configs" / "imagenet"
MODELS = sorted(path for path in RECIPES.glob("*.yaml") if path.stem != "data")
METHODS = sorted((RECIPES / "methods").glob("*.yaml"))
# What a config needs that is not at hand here, and what stands in for it.
STAND_INS = {
    "folder.yaml": ["--model.classifier.model=tiny-clip", "--model.classifier.pretrained=null"],
}
# (mask, fill) -> its number in the runs of arXiv 2303.03052.
PAPER = {
    ("RandomMask", "NoFill"): 0.75,
    ("ObjectMask", "NoFill"): 0.3,
    ("ContextMask", "NoFill"): 0.6,
    ("RandomMask", "SingleFill"): 0.5,
    ("ObjectMask", "SingleFill"): 0.3,
    ("ContextMask", "SingleFill"): 0.5,
    ("RandomMask", "MultiFill"): 0.5,
    ("ObjectMask", "MultiFill"): 0.6,
    ("ContextMask", "MultiFill"): 0.3,
}


# Learning rate, weight decay, warm-up, and whether the momentum goes up and down, of the source.
SOURCES = {
    "linear_probe": (3e-5, 0, 0.02, True),
    "lp_ft": (1e-5, 0.1, 0.02, False),
    "clipood": (5e-6, 0.1, 0, False),
    "r_adapter": (5e-4, 0, 0.02, False),
    "lora": (5e-4, 0, 0.02, False),
    **dict.fromkeys(("flyp", "carft", "carot", "tracer", "starft"), (1e-5, 0.1, 0.02, False)),
    "lipsum_ft": (1e-5, 0, 0.1, False),
}
# Least share of the area in the crops of the recipes that crop, and clip no gradient.
CROPS = {
    **dict.fromkeys(("flyp", "carft", "carot", "tracer", "starft"), 0.9),
    "lipsum_ft": 0.08,
}
# The commands of the README train by the demos.
TRAINED = [
    pytest.param(path, marks=pytest.mark.slow if "demo" in path.name else ()) for path in CONFIGS
]


@pytest.mark.parametrize("config", TRAINED, ids=lambda path: path.name)
def test_every_config_trains_a_step_and_reports(config, tmp_path):
    text = config.read_text()
    assert f"python train.py --config configs/{config.name}" in text
    run = tmp_path / "run"
    args = ["--config", str(config), f"--run={run}", "--trainer.max_epochs=1"]
    args += ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    args += ["--trainer.log_every_n_steps=1"]
    args += ["--trainer.accelerator=cpu", "--data.batch_size=8", *STAND_INS.get(config.name, [])]
    if "FolderData" in text:
        root = photos(tmp_path / "photos")
        args += [f"--data.root={root}", f"--evaluation.data_root={root}"]
        args += ["--data.workers=0", "--evaluation.workers=0"]
    else:
        args += ["--data.train_images=8", "--data.val_images=8", "--evaluation.images=8"]
    train(args)
    report = ShiftReport.load(run / "report.json")
    assert {row.model for row in report.rows} >= {"tuned", "WiSE-FT 0.5"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_keeps_the_recipe_it_does_not_change(config):
    content = yaml.safe_load(config.read_text())
    assert content["run"].startswith("runs/")
    assert content["seed_everything"] == 0
    assert "gradient_clip_val" not in content["trainer"]


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory) -> Path:
    """A folder with the tree of ImageNet: 1000 classes, one picture each, few files of val."""
    root = tmp_path_factory.mktemp("data")
    shades = []
    for shade in range(4):
        shades.append(root / f"{shade}.png")
        Image.new("RGB", (9, 8), (60 * shade, 90, 255 - 60 * shade)).save(shades[-1])
    for part, classes in {"train": wordnet.synsets(), "val": wordnet.synsets()[:6]}.items():
        for k, wnid in enumerate(classes):
            folder = root / "imagenet" / part / wnid
            folder.mkdir(parents=True)
            os.link(shades[k % 4], folder / "0.png")
    return root


def words(config: Path) -> list[str]:
    """The command that a config opens with, without `python train.py`."""
    comment = "".join(re.findall(r"^#(.*)\n", config.read_text(), re.M)).replace("\\", "")
    match = re.search(r"python train\.py((?: +--\w+ \S+)+)", comment)
    assert match, config
    return shlex.split(match[1])


def small(root: Path, *more: str) -> list[str]:
    """What makes a recipe take two steps on the tree of `imagenet`."""
    return [
        f"--data.root={root / 'imagenet'}", f"--evaluation.data_root={root}", "--data.workers=0",
        "--data.val_images=4", "--data.batch_size=4", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1", *more,
    ]  # fmt: skip


# A page's command may ask for more devices than there are.
ONE = "--trainer.devices=1"


def tiny(model: str) -> list[str]:
    """A model of the same kind that runs in no time."""
    if model.startswith("vit"):
        few = "--model.classifier.templates=['a photo of a {}.', 'a sketch of a {}.']"
        return ["--model.classifier.model=tiny-clip", "--model.classifier.pretrained=null", few]
    name = "test_vit" if "vit" in model else "test_resnet"
    return [
        "--model.classifier=TimmClassifier", f"--model.classifier.model={name}",
        "--model.classifier.pretrained=false", "--model.classifier.head=own",
    ]  # fmt: skip


def random_rows(captions, dimension):
    return torch.randn(captions.tokens.shape[dimension], 64)


@pytest.fixture
def no_text_tower(monkeypatch):
    """Zero-shot heads of 1000 classes at random: their text is tested elsewhere, and slow here."""

    def random_head(clip, tokenizer, class_names, templates):
        torch.manual_seed(0)
        return torch.randn(len(class_names), clip.visual.output_dim)

    monkeypatch.setattr("cfmask.families.openclip.zero_shot_weight", random_head)
    monkeypatch.setattr("cfmask.text.Captions.head", lambda self, text: random_rows(self, 0))
    monkeypatch.setattr("cfmask.text.Captions.contexts", lambda self, text: random_rows(self, 1))


def two_steps(args: list[str]) -> TrainCLI:
    """Build all that a command asks for, then train for two steps."""
    cli = command_line([*args, "--trainer.max_epochs=1"])
    cli.trainer.callbacks, cli.trainer.loggers = [], []
    before = torch.cat([p.detach().flatten() for p in cli.model.parameters()])
    cli.trainer.fit(cli.model, cli.datamodule)
    after = torch.cat([p.detach().flatten() for p in cli.model.parameters()])
    assert cli.trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 2
    assert after.isfinite().all() and not torch.equal(before, after)
    return cli


@pytest.mark.parametrize("config", [*MODELS, *METHODS], ids=lambda path: path.stem)
def test_every_recipe_trains_two_steps(config, imagenet, tmp_path, monkeypatch, no_text_tower):
    monkeypatch.chdir(ROOT)
    command = words(config)
    assert str(config.relative_to(ROOT)) in command
    model = Path(command[1]).stem
    if config in METHODS:
        assert command[-2:] == ["--run", f"runs/imagenet/{model}_{config.stem}"]
    cli = two_steps([*command, *small(imagenet), *tiny(model), f"--run={tmp_path}"])
    assert cli.datamodule.class_names == wordnet.class_names()
    method, crop = cli.model, CROPS.get(config.stem)
    numbers = method.lr, method.weight_decay, method.warmup, method.cycle_momentum
    assert numbers == SOURCES.get(config.stem, (3e-5, 0.1, 0.02, True))
    assert method.betas == (0.9, 0.999)
    assert cli.trainer.gradient_clip_val == (None if crop else 1.0)
    if crop:
        assert cli.datamodule.crop.scale == (crop, 1.0)
    if isinstance(cli.model, Distillation):
        assert (cli.model.distill_weight, cli.model.temperature) == (30, 10)


PAGE = (ROOT / "docs" / "recipes.md").read_text()
TRAIN = re.findall(r"^python train\.py (.*)", PAGE, re.M)


@pytest.mark.parametrize("line", TRAIN, ids=lambda line: line.split("--")[-1])
def test_the_page_of_recipes_gives_commands_that_run(
    line, imagenet, tmp_path, monkeypatch, no_text_tower
):
    monkeypatch.chdir(ROOT)
    two_steps([*shlex.split(line), *small(imagenet, *tiny("vit")), f"--run={tmp_path}", ONE])


def test_the_page_of_recipes_evaluates_without_training(imagenet, tmp_path, no_text_tower):
    (line,) = re.findall(r"^python eval\.py open_clip:\S+ (.*)", PAGE, re.M)
    rest = ["--allow_incomplete=true", f"--data_root={imagenet}", f"--out={tmp_path}"]
    evaluate_run(["open_clip:tiny-clip", *shlex.split(line), *rest, "--pictures=0"])
    rows = ShiftReport.load(tmp_path / "report.json").rows
    assert {row.total for row in rows if row.metric == "accuracy"} == {6}


def test_the_page_of_recipes_names_every_method():
    assert all(f"`{path.stem}`" in PAGE for path in METHODS)


def test_a_recipe_goes_from_command_to_report(imagenet, tmp_path, monkeypatch, no_text_tower):
    monkeypatch.chdir(ROOT)
    command = [*words(RECIPES / "methods" / "object_single.yaml"), f"--run={tmp_path / 'run'}"]
    rest = ["--evaluation.allow_incomplete=true", "--evaluation.workers=0"]
    train([*command, *small(imagenet, *tiny("vit"), *rest), "--trainer.max_epochs=1"])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    # The saved file stands alone, though the recipe is made of three.
    assert config["data"]["init_args"]["class_names"] == "imagenet"
    assert ShiftReport.load(tmp_path / "run" / "report.json").reference == "imagenet/val"
    assert load_classifier(tmp_path / "run").class_names == wordnet.class_names()


def test_the_recipes_are_all_masks_and_fills_with_the_thresholds_of_the_paper():
    found = {}
    for config in METHODS:
        settings = yaml.safe_load(config.read_text())["model"]["init_args"]
        if settings.get("relevance") == "AttentionRelevance" and settings["distance"] == "feature":
            parts = settings["counterfactual"]["init_args"]
            mask = parts["mask"]
            key = "probability" if mask["class_path"] == "RandomMask" else "threshold"
            found[mask["class_path"], parts["fill"]] = mask["init_args"][key]
    assert found == PAPER


def test_the_recipe_is_the_papers():
    data = yaml.safe_load((RECIPES / "data.yaml").read_text())["init_args"]
    assert (data["batch_size"], data["val_images"]) == (512, 10240)
    for config in MODELS:
        content = yaml.safe_load(config.read_text())
        assert content["trainer"]["max_epochs"] == 10
        assert content["model"]["init_args"]["cycle_momentum"] is True
        classifier = content["model"]["init_args"]["classifier"]["init_args"]
        if classifier["pretrained"] == "openai":
            assert open_clip.get_pretrained_cfg(classifier["model"], "openai")["quick_gelu"]
            assert open_clip.get_model_config(classifier["model"])["quick_gelu"]
        else:
            assert timm.get_pretrained_cfg(classifier["model"]).num_classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", [None, "object_single"])
def test_recipes_train_two_steps_at_full_size(
    model, method, imagenet, tmp_path, monkeypatch, no_text_tower
):
    monkeypatch.chdir(ROOT)
    command = words(model)
    if method:
        grad_cam = "" if model.stem.startswith("vit") else "_gradcam"
        command += ["--config", str(RECIPES / "methods" / f"{method}{grad_cam}.yaml")]
    untrained = {"pretrained": False if "timm" in model.stem else None}
    settings = {"model": {"init_args": {"classifier": {"init_args": untrained}}}}
    (tmp_path / "untrained.yaml").write_text(yaml.safe_dump(settings))
    options = ["--config", str(tmp_path / "untrained.yaml"), f"--run={tmp_path / 'run'}"]
    options += ["--trainer.precision=32-true", "--data.batch_size=2", "--data.val_images=2"]
    two_steps([*command, *small(imagenet), *options])


def test_imagenet_names_want_the_folders_of_imagenet(imagenet, tmp_path):
    data = FolderData(str(imagenet / "imagenet"), class_names="imagenet")
    assert (data.folders[0], data.class_names[0]) == ("n01440764", "tench")
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "train" / "tench").mkdir()
    with pytest.raises(InputError, match=r"1000 ImageNet classes as WordNet ids.*2 folders"):
        FolderData(str(tmp_path), class_names="imagenet")


def test_a_given_hold_out_leaves_the_validation_folder_alone(imagenet):
    root, size = str(imagenet / "imagenet"), Preprocess((8, 8))
    assert [len(part) for part in FolderData(root).load(size)] == [1000, 6]
    assert [len(part) for part in FolderData(root, val_images=100).load(size)] == [900, 100]


@pytest.mark.slow
def test_what_a_recipe_needs_is_counted():
    model = "vit_b32"
    counted = {model: recipes.cost(model, recipes.FINE_TUNING)}
    text = (RECIPES / f"{model}.yaml").read_text()
    # Else `python benchmarks/recipes.py --update true` brings page and recipes up to date.
    assert recipes.memory_line(counted) in text and recipes.gpu_line(counted) in text
    row = recipes.table({(model, recipes.FINE_TUNING): counted[model]}).splitlines()[-1]
    assert row in PAGE


@pytest.mark.slow
def test_what_all_recipes_need_is_counted(capsys):
    recipes.main()
    assert capsys.readouterr().out.strip() in PAGE


def test_the_fewest_gpus_that_hold_a_step_are_named():
    # Of 0.85 · 24 GB the model leaves 20 GB, which is 512 images at 39 MB.
    assert recipes.Cost(1.0, 0.4e9, 39e6).devices(24) == 1
    assert recipes.Cost(1.0, 0.4e9, 40e6).devices(24) == 2
    assert recipes.Cost(1.0, 0.4e9, 78e6).devices(24) == 2
    assert recipes.Cost(1.0, 20.4e9, 1e6).devices(24) is None
