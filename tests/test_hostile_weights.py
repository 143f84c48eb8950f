"""Weights and models that are damaged, foreign or made to mislead: one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import clip_folder, timm
from support.old_files import OLD

from cfmask import InputError, OpenClipClassifier, TimmClassifier, load_classifier, save_classifier
from cfmask.exporting.reading import Predictor, open_model
from cfmask.images import Preprocess
from cfmask.weights import load_weights, read_tensors

NAMES = ["ant", "bee", "cat"]


def refusal(read, *args) -> str:
    """The one line by which something is refused."""
    with pytest.raises(InputError) as caught:
        read(*args)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 800
    return line


@pytest.fixture
def small(tmp_path) -> OpenClipClassifier:
    return OpenClipClassifier(clip_folder(tmp_path / "small"), None, NAMES, head="linear")


def written(classifier, file: Path, tensors: dict) -> Path:
    save_file(tensors, file, {"classifier": json.dumps(classifier.spec.plain())})
    return file


KINDS = {
    "int8": lambda v: v.to(torch.int8),
    "int64": lambda v: v.long(),
    "bool": lambda v: v > 0,
    "complex64": lambda v: v.to(torch.complex64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind_of_number_are_not_cast(small, tmp_path, kind):
    tensors = dict(small.state_dict())
    tensors["head.weight"] = KINDS[kind](tensors["head.weight"])
    line = refusal(load_classifier, written(small, tmp_path / "x.safetensors", tensors))
    assert "head.weight" in line
    assert kind in line


def test_counts_are_whole_numbers(small_cnn, tmp_path):
    tensors = dict(small_cnn.state_dict())
    name = next(name for name in tensors if name.endswith("num_batches_tracked"))
    for wrong in (torch.tensor(1.5), torch.tensor(True)):
        tensors[name] = wrong
        file = written(small_cnn, tmp_path / "x.safetensors", tensors)
        assert name in refusal(load_classifier, file)
    tensors[name] = torch.tensor(7, dtype=torch.int32)
    loaded = load_classifier(written(small_cnn, tmp_path / "x.safetensors", tensors))
    assert loaded.state_dict()[name] == 7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_weights_of_another_precision_load(small, tmp_path, dtype):
    tensors = {k: v.to(getattr(torch, dtype)) for k, v in small.state_dict().items()}
    loaded = load_classifier(written(small, tmp_path / "x.safetensors", tensors))
    expected = tensors["head.weight"].float()
    assert torch.equal(loaded.head.weight, expected)
    assert loaded.head.weight.dtype == torch.float32


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_weights_that_are_no_numbers_are_named(small, tmp_path, value, suffix):
    with torch.no_grad():
        small.encoder.conv1.weight.view(-1)[5] = float(value)
    file = tmp_path / f"x.{suffix}"
    if suffix == "ckpt":
        state = {f"classifier.{k}": v for k, v in small.state_dict().items()}
        torch.save({"classifier": small.spec.plain(), "state_dict": state}, file)
    else:
        save_classifier(small, file)
    line = refusal(load_classifier, file)
    assert "encoder.conv1.weight" in line
    assert str(file) in line


def test_what_a_module_begins_with_it_gets_back():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    load_weights(module, module.state_dict(), Path("x"))
    wrong = {**module.state_dict(), "mask": torch.tensor([float("nan"), 0]), "bias": torch.zeros(2)}
    load_weights(module, wrong, Path("x"))
    wrong["bias"] = torch.tensor([float("nan"), 0])
    assert "bias" in refusal(load_weights, module, wrong, Path("x"))


def test_a_broken_state_is_one_line(small, tmp_path):
    file, spec = tmp_path / "x.ckpt", small.spec.plain()
    states = (None, [1], {1: torch.zeros(1)}, {"classifier.head.weight": 3}, {})
    for state in states:
        torch.save({"classifier": spec, "state_dict": state}, file)
        assert str(file) in refusal(load_classifier, file)
    for odd in (3, "x", [spec], {"model": spec}, torch.zeros(3)):
        torch.save({"classifier": odd, "state_dict": {}}, file)
        assert str(file) in refusal(load_classifier, file)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("name", ["head.weight", "encoder.conv1.weight"])
def test_sparse_weights_are_refused(small, tmp_path, name):
    state = {f"classifier.{k}": v.detach() for k, v in small.state_dict().items()}
    state[f"classifier.{name}"] = state[f"classifier.{name}"].to_sparse()
    torch.save({"classifier": small.spec.plain(), "state_dict": state}, tmp_path / "x.ckpt")
    refusal(load_classifier, tmp_path / "x.ckpt")


PRETRAINED = {
    "nan": (lambda v: torch.full_like(v, torch.nan), "NaN"),
    "int8": (lambda v: v.to(torch.int8), "int8"),
}


@pytest.mark.parametrize("wrong", PRETRAINED)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_pretrained_weights_are_checked_like_ones_own(tmp_path, wrong, suffix):
    change, word = PRETRAINED[wrong]
    import timm as library

    net = library.create_model("test_efficientnet")
    tensors = dict(net.state_dict())
    tensors["conv_stem.weight"] = change(tensors["conv_stem.weight"])
    file = tmp_path / f"x.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
    line = refusal(TimmClassifier, "test_efficientnet", str(file), NAMES)
    assert "conv_stem.weight" in line and word in line


@pytest.mark.parametrize("wrong", PRETRAINED)
def test_weights_in_an_open_clip_folder_are_checked_too(tmp_path, wrong):
    import open_clip

    change, word = PRETRAINED[wrong]
    folder = Path(clip_folder(tmp_path / "clip"))
    tensors = dict(open_clip.create_model(f"local-dir:{folder}").state_dict())
    tensors["visual.conv1.weight"] = change(tensors["visual.conv1.weight"])
    save_file(tensors, folder / "open_clip_model.safetensors")
    line = refusal(OpenClipClassifier, str(folder), None, NAMES)
    assert "visual.conv1.weight" in line and word in line


HEADERS = [
    "{",
    "[" * 100_000,
    '{"a": ' * 50_000,
    "null",
    "0",
    '""',
    "[]",
    "1" * 5000,
    '"\\ud800"',
    "NaN",
    '{"class_path": {}}',
]


@pytest.mark.parametrize("text", HEADERS, ids=range(len(HEADERS)))
def test_a_hostile_header_is_one_line(small, tmp_path, text):
    for key in ("classifier", "cfmask"):
        file = tmp_path / f"{key}.safetensors"
        save_file(small.state_dict(), file, {key: text})
        assert str(file) in refusal(open_model, file)
        assert str(file) in refusal(load_classifier, file)


CONFIGS = [
    None,
    {},
    [],
    "ViT-B-32",
    {"embed_dim": 16},
    {"embed_dim": 16, "vision_cfg": 3},
    {"embed_dim": "16", "vision_cfg": {"layers": 2}},
    {"embed_dim": 16, "vision_cfg": {"no_such": 2}},
    {"embed_dim": 16, "vision_cfg": {"layers": "two"}},
    {"embed_dim": 16, "vision_cfg": {"layers": -1, "width": 32, "head_width": 16}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "head_width": 0}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 33, "head_width": 16}},
    {"embed_dim": 16, "vision_cfg": {"layers": 10**12, "width": 32, "head_width": 16}},
    {"embed_dim": 10**12, "vision_cfg": {"layers": 1, "width": 32, "head_width": 16}},
    {"embed_dim": 16, "vision_cfg": {"layers": [1, 1, 1], "width": 32, "head_width": 16}},
    {"embed_dim": 16, "vision_cfg": {"timm_model_name": "no_such_model"}},
    {"embed_dim": 16, "vision_cfg": {"timm_model_name": ["test_vit"]}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "pool_type": "x"}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "act_kwargs": {"x": 1}}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "pos_embed_type": "sin_cos_2d"}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "patch_size": 0}},
    {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 32, "patch_size": [16]}},
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_hostile_description_of_a_tower_is_one_line(small, tmp_path, config):
    spec = {**small.spec.plain(), "config": config}
    file = tmp_path / "x.safetensors"
    save_file(small.state_dict(), file, {"classifier": json.dumps(spec)})
    refusal(load_classifier, file)


@pytest.mark.parametrize("size", [[33, 32], [16_384, 16_384], [1, 1], [0, 0]])
def test_a_size_that_the_tower_does_not_take_is_one_line(small, tmp_path, size):
    spec = small.spec.plain()
    spec["preprocess"]["size"] = size
    file = tmp_path / "x.safetensors"
    save_file(small.state_dict(), file, {"classifier": json.dumps(spec)})
    refusal(load_classifier, file)


def onnx_model(file: Path, facts: str, out: int = 3, bad: bool = False) -> Path:
    """A graph that gives logits of images, with a text as its provenance."""
    import onnx
    from onnx import helper

    images = helper.make_tensor_value_info("images", 1, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", 1, ["batch", None])
    weight = torch.full((3 * 8 * 8, out), torch.nan if bad else 0.5)
    constant = helper.make_tensor("w", 1, weight.shape, weight.flatten().tolist())
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "g", [images], [logits], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.metadata_props.add(key="cfmask", value=facts)
    onnx.save(model, file)
    return file


def onnx_facts(**changes) -> str:
    spec = timm().spec.plain()
    spec["preprocess"]["size"] = [8, 8]
    return json.dumps({"classifier": {**spec, **changes}})


def predicted(file: Path) -> torch.Tensor:
    return open_model(file)([torch.zeros(3, 9, 9, dtype=torch.uint8)])


def test_a_sound_graph_predicts(tmp_path):
    shares = predicted(onnx_model(tmp_path / "x.onnx", onnx_facts()))
    assert torch.allclose(shares, torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize(
    "facts",
    [
        *("", "{", "[]", "3", "null", "{}", '{"classifier": 3}', '{"classifier": {}}'),
        "[" * 100_000,
        onnx_facts(class_names=["a", "b"]),
        onnx_facts(preprocess={"size": [0, 0]}),
    ],
    ids=range(11),
)
def test_hostile_facts_in_a_graph_are_one_line(tmp_path, facts):
    refusal(open_model, onnx_model(tmp_path / "x.onnx", facts))


def test_a_graph_that_does_not_fit_its_facts_is_one_line(tmp_path):
    refusal(predicted, onnx_model(tmp_path / "a.onnx", onnx_facts(), out=2))
    refusal(predicted, onnx_model(tmp_path / "b.onnx", onnx_facts(), bad=True))
    other = json.loads(onnx_facts())
    other["classifier"]["preprocess"]["size"] = [9, 9]
    refusal(predicted, onnx_model(tmp_path / "c.onnx", json.dumps(other)))


def test_a_graph_with_other_names_is_one_line(tmp_path):
    import onnx

    file = onnx_model(tmp_path / "x.onnx", onnx_facts())
    model = onnx.load(file)
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    onnx.save(model, file)
    refusal(predicted, file)


def test_answers_that_are_no_numbers_are_refused():
    for answer in (torch.full((1, 2), torch.nan), torch.zeros(1, 3), torch.zeros(2)):
        model = Predictor(("a", "b"), Preprocess((4, 4)), lambda images, a=answer: a)
        refusal(model, [torch.zeros(3, 4, 4, dtype=torch.uint8)])


TIMM = [
    {},
    [],
    {"num_classes": 3},
    {"architecture": "test_efficientnet"},
    {"architecture": "test_efficientnet", "num_classes": -3, "label_names": NAMES},
    {"architecture": "test_efficientnet", "num_classes": "three", "label_names": NAMES},
    {"architecture": "test_efficientnet", "num_classes": 3, "label_names": 5},
    {"architecture": "test_efficientnet", "num_classes": 3, "model_args": {"pretrained": True}},
    {"architecture": "test_efficientnet", "num_classes": 3, "model_args": {"x": 1}},
    {"architecture": "test_efficientnet", "num_classes": 3, "pretrained_cfg": {"mean": "x"}},
    {"architecture": "test_efficientnet", "num_classes": 3, "pretrained_cfg": {"input_size": [3]}},
]


@pytest.mark.parametrize("config", TIMM, ids=range(len(TIMM)))
def test_a_hostile_timm_folder_is_one_line(tmp_path, config):
    import timm as library

    net = library.create_model("test_efficientnet", num_classes=3)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if isinstance(config, dict):
        config.setdefault("label_names", NAMES)
        (tmp_path / "config.json").write_text(json.dumps(config))
    refusal(open_model, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_cfg": 3}', "[" * 100_000, "{}"])
def test_a_hostile_open_clip_folder_is_one_line(tmp_path, text):
    save_file({"x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(text)
    refusal(open_model, tmp_path, NAMES)


def test_an_exported_head_is_checked(tmp_path):
    from cfmask.exporting.writing import export

    folder = Path(clip_folder(tmp_path / "clip"))
    save_classifier(
        OpenClipClassifier(str(folder), None, NAMES, head="linear"), tmp_path / "x.safetensors"
    )
    export(str(tmp_path / "x.safetensors"), "open_clip", str(tmp_path / "out"))
    head = read_tensors(tmp_path / "out" / "head.safetensors")
    for wrong in (head["weight"] * torch.nan, head["weight"].long(), head["weight"][:2]):
        save_file({**head, "weight": wrong}, tmp_path / "out" / "head.safetensors")
        assert "head.safetensors" in refusal(open_model, tmp_path / "out")


def test_a_damaged_program_is_one_line(tmp_path):
    for content in (b"", b"x" * 100, (OLD / "run" / "checkpoints" / "last.ckpt").read_bytes()):
        (tmp_path / "model.pt2").write_bytes(content)
        refusal(open_model, tmp_path / "model.pt2", None, True)
