"""Files of others are data: no class is imported, no program run and no network asked for them."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from support.checkpoints import clip_folder
from support.old_files import OLD

from cfmask import (
    InputError,
    ModuleClassifier,
    OpenClipClassifier,
    TimmClassifier,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.main import main
from cfmask.commands.predict_images import predict_images
from cfmask.commands.show_images import show
from cfmask.commands.train_model import train
from cfmask.exporting.reading import open_model
from cfmask.exporting.writing import export
from cfmask.families.fingerprint import is_torchscript
from cfmask.relevance import GradCAM
from cfmask.trust import find_class

# A module that leaves a trace when it is imported.
MODULE = """
from pathlib import Path
from cfmask import DigitsData, GradCAM, ObjectMask, OpenClipClassifier, SingleFill
Path(__file__).with_name("trace").touch()
class Classifier(OpenClipClassifier): pass
class Relevance(GradCAM): pass
class Mask(ObjectMask): pass
class Fill(SingleFill): pass
class Data(DigitsData): pass
"""
MASK = {"class_path": "cfmask.ObjectMask", "init_args": {"threshold": 0.3}}
FILL = {"class_path": "cfmask.SingleFill"}


def counterfactual(mask=MASK, fill=FILL) -> dict:
    return {"class_path": "cfmask.Counterfactual", "init_args": {"mask": mask, "fill": fill}}


# Settings of a foreign config by where they stand.
PLANTS = {
    "a relevance by class path": ("relevance", {"class_path": "planted.Relevance"}),
    "a relevance by its name alone": ("relevance", "planted.Relevance"),
    "a relevance as JSON in a text": ("relevance", '{"class_path": "planted.Relevance"}'),
    "a relevance in another file": ("relevance", "planted.yaml"),
    "a mask": ("counterfactual", counterfactual({"class_path": "planted.Mask"})),
    "a fill by its name alone": ("counterfactual", counterfactual(fill="planted.Fill")),
    "one of several": ("counterfactual", [counterfactual(), {"class_path": "planted.Mask"}]),
    "data": ("data", {"class_path": "planted.Data"}),
}
# Classes that are imported already and do harm.
HARM = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "trace"]}}
HARMS = {
    "a program in place of a relevance": ("relevance", HARM),
    "a program in place of a mask": ("counterfactual", counterfactual(mask=HARM)),
    "a program in place of data": ("data", HARM),
    "a program among arguments": (
        "relevance",
        {"class_path": "cfmask.GradCAM", "init_args": {"layer": HARM}},
    ),
}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A foreign run folder with a module in it, in which the process stands."""
    folder = tmp_path / "run"
    shutil.copytree(OLD / "run", folder)
    (folder / "planted.py").write_text(MODULE)
    (folder / "planted.yaml").write_text("class_path: planted.Relevance")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    monkeypatch.chdir(folder)
    # As `python -m` has it.
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend("")
    return folder


@pytest.fixture(autouse=True)
def no_leftovers():
    """Nothing of one test stays imported for the next."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A network that fails the test."""

    def asked(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket.socket, "connect", asked)


def plant(run: Path, key: str, value: object) -> None:
    """Change one setting of a run's config."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (config if key == "data" else config["model"]["init_args"])[key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def drawn(run: Path, **options) -> str:
    """The one line by which `show` refuses a run."""
    with pytest.raises(InputError) as caught:
        show(
            [str(run.parent / "red.png")],
            ["one"],
            str(run),
            out=str(run.parent / "x.png"),
            **options,
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", [*PLANTS, *HARMS])
def test_a_module_in_a_run_folder_is_never_imported(run, name, trust):
    plant(run, *{**PLANTS, **HARMS}[name])
    drawn(run, trust=trust)
    assert "planted" not in sys.modules
    assert not (run / "trace").exists()


def test_a_run_without_foreign_classes_is_drawn(run, tmp_path):
    out = show([str(tmp_path / "red.png")], ["one"], str(run), out=str(tmp_path / "x.png"))
    assert out.is_file()


def test_trust_or_an_import_opens_the_users_own_classes(run, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    shutil.move(run / "planted.py", tmp_path / "mine" / "planted.py")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    plant(run, *PLANTS["a relevance by class path"])
    assert "planted.Relevance" in drawn(run)
    assert "--trust true" in drawn(run)
    pictures, out = [str(tmp_path / "red.png")], str(tmp_path / "x.png")
    assert show(pictures, ["one"], str(run), out=out, trust=True).is_file()
    # The module is imported now, so that its classes need no trust.
    plant(run, *PLANTS["a fill by its name alone"])
    assert show(pictures, ["one"], str(run), out=out).is_file()


def test_data_of_a_foreign_run_are_not_fetched(run):
    data = {"class_path": "cfmask.ShardData", "init_args": {"shards": "https://x.org/{0..9}.tar"}}
    plant(run, "data", data)
    assert "https://x.org" in drawn(run)


WRONG = {
    "no number": ("counterfactual", counterfactual({**MASK, "init_args": {"threshold": "high"}})),
    "no such argument": ("counterfactual", counterfactual({**MASK, "init_args": {"size": 1}})),
    "a list": ("counterfactual", counterfactual(mask=[MASK])),
    "nothing": ("counterfactual", counterfactual(mask=None)),
    "another class": ("counterfactual", counterfactual(mask=FILL)),
    "a number as a class": ("relevance", 3),
    "arguments that are none": ("relevance", {"class_path": "cfmask.GradCAM", "init_args": [1]}),
    "no data": ("data", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_config_is_one_line(run, name):
    plant(run, *WRONG[name])
    assert str(run) in drawn(run)


def relabelled(file: Path, **changes) -> None:
    """Change the spec in the header of a weights file."""
    classifier = load_classifier(file)
    spec = {**classifier.spec.plain(), **changes}
    save_file(classifier.state_dict(), file, {"classifier": json.dumps(spec)})


def commands(run: Path):
    """All that opens weights."""
    picture, out = str(run.parent / "red.png"), str(run.parent / "out")
    yield lambda: load_classifier(run)
    yield lambda: load_classifier(run / WEIGHTS)
    yield lambda: open_model(run)
    yield lambda: export(str(run), "safetensors", out)
    yield lambda: show([picture], ["one"], str(run), out=f"{out}.png")
    yield lambda: predict_images([str(run), picture])
    yield lambda: evaluate_run([str(run), "--out", out])
    yield lambda: main(["merge", str(run), "--by=wise", "--alpha=0.5", f"--out={out}"])
    yield lambda: main(["explain", picture, f"--model={run}", f"--out={out}.png"])
    yield lambda: main(["missingness", str(run), "--data=digits", f"--out={out}"])


@pytest.mark.parametrize("path", ["planted.Classifier", "subprocess.Popen", "os.system", "x.Y"])
def test_the_class_that_weights_name_is_not_imported(run, path, capsys):
    for name in (WEIGHTS, PRETRAINED):
        relabelled(run / name, class_path=path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"]["trust"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for command in commands(run):
        with pytest.raises((InputError, SystemExit)) as caught:
            command()
        text = str(caught.value) if caught.type is InputError else capsys.readouterr().err
        assert path in text
        assert len(text.strip().splitlines()) == 1
    with pytest.raises(InputError):
        load_classifier(run, trust=True)
    assert not (run / "trace").exists()


def test_trusted_weights_come_back_as_the_class_that_they_name(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    shutil.move(run / "planted.py", tmp_path / "mine" / "planted.py")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    for name in (WEIGHTS, PRETRAINED):
        relabelled(run / name, class_path="planted.Classifier")
    predict_images([str(run), str(tmp_path / "red.png"), "--trust", "--json", "true"])
    assert "probability" in capsys.readouterr().out
    loaded = load_classifier(run)
    assert type(loaded).__name__ == "Classifier"
    assert loaded.spec.class_path == "planted.Classifier"
    del sys.modules["planted"]
    evaluate_run([str(run), "--out", str(tmp_path / "out"), "--trust"])
    assert (tmp_path / "out" / "report.json").is_file()
    del sys.modules["planted"]
    export(str(run), "safetensors", str(tmp_path / "exported"), trust=True)


def test_a_run_that_goes_on_imports_nothing(run, capsys):
    relabelled(run / PRETRAINED, class_path="planted.Classifier")
    (run / WEIGHTS).unlink()
    with pytest.raises(SystemExit):
        train(["-c", str(run / "config.yaml"), "--run", str(run), "--resume=true"])
    assert not (run / "trace").exists()


@pytest.mark.parametrize("path", ["GradCAM", "cfmask.GradCAM", "cfmask.relevance.GradCAM"])
def test_classes_of_this_package_are_found_by_name(path):
    assert find_class(path, GradCAM, Path("x")) is GradCAM


@pytest.mark.parametrize("path", ["cfmask.", ".", "", "cfmask.nothing.X", "cfmask", "torch.nn"])
def test_a_name_that_leads_nowhere_is_one_line(path):
    with pytest.raises(InputError):
        find_class(path, GradCAM, Path("x"))


NETWORKS = {
    "model.safetensors": {"model": "hf-hub:timm/resnet18.a1_in1k"},
    "trunk.safetensors": {
        "config": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "hf-hub:timm/resnet18"}}
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_never_ask_the_network(tmp_path, name):
    names = ["a", "b"]
    if name == "trunk.safetensors":
        made = OpenClipClassifier(clip_folder(tmp_path / "clip"), None, names, head="linear")
    else:
        made = TimmClassifier("test_efficientnet", False, names, image_size=32)
    save_classifier(made, tmp_path / name)
    relabelled(tmp_path / name, **NETWORKS[name])
    for trust in (False, True):
        with pytest.raises(InputError, match="hf-hub:timm/resnet18"):
            open_model(tmp_path / name, trusted=trust)


@pytest.mark.parametrize(
    ("tower", "part"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:timm/resnet18"}),
        ("text_cfg", {"hf_model_name": "roberta-base"}),
    ],
)
def test_an_open_clip_folder_never_asks_the_network(tmp_path, tower, part):
    folder = Path(clip_folder(tmp_path / "clip"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][tower] |= part
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=next(iter(part.values()))):
        open_model(folder, ["a", "b"])


def test_a_timm_folder_never_asks_the_network(tmp_path):
    config = {"architecture": "hf-hub:timm/resnet18", "num_classes": 2, "label_names": ["a", "b"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="hf-hub:timm/resnet18"):
        open_model(tmp_path)


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_pickle_dressed_as_a_program_of_torchs_is_not_taken_for_one(tmp_path):
    file, trace = tmp_path / "dressed.pt", tmp_path / "trace"
    torch.save({"x": Trap(trace)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("dressed/code/model.py", "QuickGELU")
    assert not is_torchscript(file)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "program.pt")
    assert is_torchscript(tmp_path / "program.pt")
    # The trap is a real one.
    torch.load(file, weights_only=False)
    assert trace.exists()


# What a file may name as the maker of a module, but must not be called.
MAKERS = {
    "a program": ("os.system", {"command": "touch trace"}),
    "a class that runs a program": ("subprocess.Popen", {"args": ["touch", "trace"]}),
    "a function of torch's": ("torch.hub.load", {"repo_or_dir": "x/y", "model": "z"}),
    "weights to fetch": (
        "torchvision.models.get_model",
        {"name": "resnet18", "weights": "DEFAULT"},
    ),
    "a module in the folder": ("planted.make", {}),
    "a module of another kind": ("torch.nn.LSTM", {}),
    "arguments that are wrong": ("torch.nn.Linear", {"in_features": "x", "out_features": -1}),
    "a layer alone": ("torch.nn.Linear", {"in_features": 3, "out_features": 2}),
    "nothing": ("", {}),
    "no path": ("resnet18", {}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_calls_nothing_but_modules(run, name):
    module, arguments = MAKERS[name]
    changes = {"module": module, "arguments": arguments, "class_path": "cfmask.ModuleClassifier"}
    relabelled(run / WEIGHTS, **changes)
    with pytest.raises(InputError) as caught:
        load_classifier(run)
    assert len(str(caught.value).splitlines()) == 1
    assert not (run / "trace").exists()


def test_a_trusted_file_imports_no_maker_from_beside_it(run):
    relabelled(run / WEIGHTS, module="planted.Mask", class_path="cfmask.ModuleClassifier")
    with pytest.raises(InputError, match="beside"):
        load_classifier(run, trust=True)
    assert not (run / "trace").exists()


@torch.no_grad()
def test_the_weights_of_a_torchvision_model_come_from_its_file(tmp_path):
    made = ModuleClassifier("torchvision.models.squeezenet1_1", {"num_classes": 2}, ["a", "b"])
    save_classifier(made, tmp_path / "x.safetensors")
    arguments = {"num_classes": 2, "weights": "DEFAULT"}
    relabelled(tmp_path / "x.safetensors", arguments=arguments)
    loaded = load_classifier(tmp_path / "x.safetensors")
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(loaded(images), made.eval()(images))


def test_a_folder_named_like_code_is_no_command(run, monkeypatch):
    named = run.parent / "planted.sets"
    run.rename(named)
    config = yaml.safe_load((named / "config.yaml").read_text())
    config["evaluation"]["shifts"] = ["planted.sets"]
    (named / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.move(named / "planted.py", named.parent / "planted.py")
    monkeypatch.chdir(named.parent)
    with pytest.raises(SystemExit):
        evaluate_run(["planted.sets"])
    assert not (named.parent / "trace").exists()
