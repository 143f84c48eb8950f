from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.checkpoints import clip_folder
from support.exported import CONFIG, FAMILY, MAKERS, digit_images, plant_run, start, tuned

from cfmask import Classifier, InputError, OpenClipClassifier, TimmClassifier, save_classifier
from cfmask.exporting.model_card import LOADING
from cfmask.exporting.reading import MAIN_FILES, READERS, open_model
from cfmask.exporting.writing import EXPORTERS, FAMILIES, export

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
# Graphs take seconds each; quick tests of programs and of own data write one of each kind.
SLOW = {(model, form) for model in FAMILY for form in ("onnx", "torch_export")}
PAIRS = [
    pytest.param(
        (model, form), id=f"{model} {form}", marks=[pytest.mark.slow] * ((model, form) in SLOW)
    )
    for model, family in FAMILY.items()
    for form in EXPORTERS
    if issubclass(family, FAMILIES.get(form, Classifier))
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of each model, that of CLIP with a report."""
    root = tmp_path_factory.mktemp("runs")
    for model in MAKERS:
        plant_run(root / model, model, images=10 if model == "tiny-clip" else 0)
    return root


@pytest.fixture(scope="module", params=PAIRS)
def exported(request, made, tmp_path_factory) -> tuple[str, str, Path]:
    model, form = request.param
    folder = tmp_path_factory.mktemp("out") / form
    export(str(made / model), form, str(folder))
    return model, form, folder


def run_card(folder: Path, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits by the first code of the folder's card, and what the models of the others give."""
    names = {"folder": str(folder), "images": images}
    first, *others = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    exec(first, names)
    models = [eval(other, names).eval() for other in others]
    forward = [getattr(model, "encode_image", model) for model in models]
    return names["logits"], [run((images - names["mean"]) / names["std"]) for run in forward]


def documented(form: str) -> tuple[dict[str, float], float]:
    """Sizes in MB by model, and the tolerance, of a format in docs/export.md."""
    (line,) = re.findall(rf"^\| `{form}` \|.*$", DOCS.read_text(), re.M)
    sizes = {name: float(size) for name, size in re.findall(r"([\w-]+) ([\d.]+) MB", line)}
    return sizes, float(line.split("|")[-2])


@torch.no_grad()
def test_the_tool_that_an_export_is_for_gives_the_models_logits(exported):
    model, form, folder = exported
    expected = tuned(model)
    images = digit_images(expected.image_size[0])
    logits, others = run_card(folder, images)
    wanted = expected(images)
    assert wanted.std(0).max() > 1e-2
    tolerance = documented(form)[1]
    assert tolerance <= 1e-4
    torch.testing.assert_close(logits, wanted, atol=tolerance, rtol=0)
    assert torch.equal(logits.argmax(1), wanted.argmax(1))
    assert len(others) == (form == "timm")
    for other in others:
        torch.testing.assert_close(other, wanted, atol=tolerance, rtol=0)


@torch.no_grad()
def test_any_number_of_images_will_do(exported):
    model, _, folder = exported
    expected = tuned(model)
    images = digit_images(expected.image_size[0])
    predictor = open_model(folder, trusted=True)
    for count in (1, 5):
        logits = predictor.logits(images[:count])
        torch.testing.assert_close(logits, expected(images[:count]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_file_alone_names_its_classes_and_its_images(exported, tmp_path):
    model, form, folder = exported
    alone = shutil.copy(folder / MAIN_FILES[form], tmp_path)
    if form == "open_clip":
        with pytest.raises(InputError, match=r"open_clip_config\.json beside it"):
            open_model(alone)
        return
    predictor, expected = open_model(alone, trusted=True), tuned(model)
    assert predictor.class_names == expected.class_names
    assert predictor.preprocess == expected.preprocess
    images = digit_images(expected.image_size[0])
    torch.testing.assert_close(predictor.logits(images), expected(images), atol=1e-4, rtol=0)


def test_the_folder_says_where_the_model_comes_from(exported):
    model, form, folder = exported
    facts = json.loads((folder / "provenance.json").read_text())
    assert (facts["format"], facts["weights"]) == (form, "tuned")
    assert facts["classifier"] == json.loads(json.dumps(start(model).spec.plain()))
    (run,) = facts["runs"]
    assert yaml.safe_load(run["config"]) == CONFIG
    assert run["training"]["train_images"] == 48
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "Loaded back" in facts["agreement"]
    card = (folder / "README.md").read_text()
    assert "seed_everything: 0" in card
    assert "FineTuning on 48 training and 20 validation images of 10 classes" in card
    assert "zero, one, two" in card


def test_the_docs_give_this_files_size(exported):
    model, form, folder = exported
    size = (folder / MAIN_FILES[form]).stat().st_size / 1e6
    assert size == pytest.approx(documented(form)[0][model], rel=0.04)


def test_no_path_of_this_machine_leaves_it(exported):
    content = b"".join(path.read_bytes() for path in exported[2].iterdir())
    assert len(content) > 1e6
    for place in (str(DOCS.parents[1]), "site-packages"):
        assert place.encode() not in content


def test_every_format_is_written_read_and_described():
    assert EXPORTERS.keys() == READERS.keys() == LOADING.keys() == MAIN_FILES.keys()
    assert FAMILIES.keys() <= EXPORTERS.keys()


def test_the_text_tower_of_an_exported_clip_is_untouched(made, tmp_path):
    export(str(made / "tiny-clip"), "open_clip", str(tmp_path / "out"))
    clip = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    before = load_file(
        Path(__file__).parents[1] / "cfmask" / "tiny_clip" / "open_clip_model.safetensors"
    )
    assert clip.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(clip[name], value.float()) != name.startswith("visual."), name


@torch.no_grad()
def test_a_linear_head_is_exported_with_its_clip(tmp_path):
    classifier = OpenClipClassifier("tiny-clip", None, ["a", "b"], head="linear").eval()
    save_classifier(classifier, tmp_path / "x.safetensors")
    export(str(tmp_path / "x.safetensors"), "open_clip", str(tmp_path / "out"))
    images = digit_images(48)
    logits, _ = run_card(tmp_path / "out", images)
    torch.testing.assert_close(logits, classifier(images), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Nothing in .* tells GELU from QuickGELU")
@torch.no_grad()
def test_a_clip_that_open_clip_knows_by_name_loads_from_its_file(tmp_path, monkeypatch):
    import open_clip

    path = Path(clip_folder(tmp_path / "made", quick_gelu=True)) / "open_clip_config.json"
    config = json.loads(path.read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "made-for-this", config)
    torch.manual_seed(0)
    weights = tmp_path / "start.safetensors"
    save_file(open_clip.create_model("made-for-this").state_dict(), weights)
    classifier = OpenClipClassifier("made-for-this", str(weights), ["a", "b"])
    before = classifier.features(digit_images(32))
    classifier.encoder.proj.mul_(2)
    save_classifier(classifier, tmp_path / "x.safetensors")
    export(str(tmp_path / "x.safetensors"), "open_clip", str(tmp_path / "out"))
    logits, (features,) = run_card(tmp_path / "out", digit_images(32))
    torch.testing.assert_close(features, 2 * before)
    torch.testing.assert_close(logits, classifier(digit_images(32)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, (64, 48)])
@pytest.mark.parametrize("model", ["tiny-clip", "test_vit"])
@torch.no_grad()
def test_a_model_of_another_image_size_keeps_it(tmp_path, model, size):
    torch.manual_seed(0)
    if model == "tiny-clip":
        classifier = OpenClipClassifier(model, None, ["two", "three"], ["a {}"], image_size=size)
    else:
        classifier = TimmClassifier(model, False, ["two", "three"], image_size=size)
    save_classifier(classifier, tmp_path / "x.safetensors")
    form = "open_clip" if model == "tiny-clip" else "timm"
    export(str(tmp_path / "x.safetensors"), form, str(tmp_path / "out"))
    images = torch.rand(3, 3, *classifier.image_size)
    for got in (run_card(tmp_path / "out", images)[0], open_model(tmp_path / "out").logits(images)):
        torch.testing.assert_close(got, classifier.eval()(images), atol=1e-5, rtol=0)
    assert open_model(tmp_path / "out").preprocess == classifier.preprocess


def test_the_card_gives_the_figures_of_these_weights(made, tmp_path):
    from huggingface_hub import ModelCard

    export(str(made / "tiny-clip"), "safetensors", str(tmp_path / "out"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "cfmask"
    report = json.loads((made / "tiny-clip" / "report.json").read_text())
    rows = [r for r in report["rows"] if (r["model"], r["metric"]) == ("tuned", "accuracy")]
    expected = {r["shift"]: r["value"] for r in rows}
    got = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert got == expected
    assert {"digits/id", "digits/sketch", "mean of shifts"} <= set(got)
    table = [line for line in card.text.splitlines() if line.startswith(("| tuned", "| zero"))]
    assert len(table) == 2
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["report"]["protocol"] == report["protocol"]
