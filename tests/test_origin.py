"""Weights files say what they were made for: architecture, activation."""

from __future__ import annotations

import json
import warnings

import open_clip
import pytest
import timm
import torch

from cfmask import InputError, OpenClipClassifier, TimmClassifier
from cfmask.families.fingerprint import is_torchscript, mismatch, shapes, uses_quick_gelu

TEXT = {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
CONFIGS = {
    "small": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "small-quickgelu": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "coarse": {"embed_dim": 16, "vision_cfg": {**VIT, "patch_size": 16}, "text_cfg": TEXT},
    "coarse-quickgelu": {
        "embed_dim": 16,
        "vision_cfg": {**VIT, "patch_size": 16},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "conv": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT},
}


@pytest.fixture
def models(monkeypatch):
    """open_clip with five small models instead of its own."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", CONFIGS)
    return open_clip


def write(models, name, path):
    torch.save(models.create_model(name).state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("made_for", "loaded", "words"),
    [
        ("coarse", "small", ["embedding (5, 32) instead of (17, 32)", "they fit model coarse."]),
        ("coarse", "small-quickgelu", ["they fit model coarse-quickgelu."]),
        ("conv", "small", ["missing (first visual.class_embedding)", "they fit model conv."]),
        ("small", "conv", ["unexpected (first visual.class_embedding)", "they fit model small."]),
    ],
)
@pytest.mark.filterwarnings("ignore:Nothing in")
def test_weights_of_another_clip_name_the_right_one(models, tmp_path, made_for, loaded, words):
    path = write(models, made_for, tmp_path / "mine.pt")
    with pytest.raises(InputError) as error:
        OpenClipClassifier(loaded, path, ["a"], head="linear")
    text = str(error.value)
    assert f"weights of {loaded} in {path}" in text
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_weights_of_another_timm_model_name_the_right_one(tmp_path):
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "mine.pth")
    with pytest.raises(InputError) as error:
        TimmClassifier("test_vit", str(tmp_path / "mine.pth"), ["a"])
    text = str(error.value)
    assert "unexpected (first reg_token)" in text
    assert text.endswith("they fit model test_vit2.")


def test_weights_that_fit_nothing_are_called_so(tmp_path):
    error = mismatch(
        "a", tmp_path, {"x": (1,)}, {"y": (2,)}, [("b", lambda: torch.nn.Linear(1, 1))]
    )
    assert "1 missing (first y), 1 unexpected (first x); they fit no model known" in str(error)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("head", ["linear", "own"])
def test_timm_weights_load_with_their_own_number_of_classes(tmp_path, wrap, head):
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3).eval()
    torch.save(wrap(net.state_dict()), tmp_path / "mine.pth")
    classifier = TimmClassifier("test_resnet", str(tmp_path / "mine.pth"), list("abc"), head).eval()
    images = torch.rand(2, 3, 160, 160)
    features = net.forward_features((images - classifier.mean) / classifier.std)
    expected = net.forward_head(features, pre_logits=True)
    assert torch.allclose(classifier.features(images), expected, atol=1e-5)
    if head == "own":
        assert torch.allclose(classifier(images), net.fc(expected), atol=1e-5)


def test_an_archive_as_openai_released_it_says_its_activation_and_loads(models, tmp_path):
    for name, quick in (("small", False), ("small-quickgelu", True)):
        clip = models.create_model(name).eval()
        mask = clip._buffers.pop("attn_mask")
        clip.attn_mask = mask
        inputs = torch.rand(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(clip, inputs, check_trace=False)
            traced.save(str(tmp_path / "release.pt"))
        assert is_torchscript(tmp_path / "release.pt")
        assert uses_quick_gelu(tmp_path / "release.pt") is quick
        classifier = OpenClipClassifier(name, str(tmp_path / "release.pt"), ["a"], head="linear")
        images = torch.rand(2, 3, 32, 32)
        expected = clip.visual((images - classifier.mean) / classifier.std)
        assert torch.allclose(classifier.features(images), expected, atol=1e-5)
        other = "small" if quick else "small-quickgelu"
        with pytest.raises(InputError, match=f"use model {name}.$"):
            OpenClipClassifier(other, str(tmp_path / "release.pt"), ["a"], head="linear")


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.bin", False),
        ("models/vit_b_32-datacomp_xl_s13b_b90k.pt", False),
        ("vit_base_patch32_clip_224.openai/weights.bin", True),
        ("x/ViT-B-32-QuickGELU.pt", True),
        ("DFN2B-CLIP/dfn2b.pt", True),
        ("DFN2B-CLIP/dfn2b_s39b.pt", False),
        ("x/laion400m_e32.pt", None),
        ("x/mine.pt", None),
    ],
)
def test_names_of_files_tell_the_activation(tmp_path, name, quick):
    path = tmp_path / name
    path.parent.mkdir()
    torch.save({"x": torch.zeros(1)}, path)
    assert not is_torchscript(path)
    assert uses_quick_gelu(path) is quick


def test_a_configuration_beside_the_file_tells_the_activation(tmp_path):
    path = tmp_path / "laion2b.bin"
    path.write_bytes(b"")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    assert uses_quick_gelu(path) is True


def test_what_cannot_be_told_is_said(models, tmp_path):
    path = write(models, "small", tmp_path / "mine.pt")
    with pytest.warns(
        UserWarning, match="tells GELU from QuickGELU: GELU is used.*small-quickgelu"
    ):
        OpenClipClassifier("small", path, ["a"], head="linear")
    path = write(models, "conv", tmp_path / "mine.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenClipClassifier("conv", path, ["a"], head="linear")


def test_shapes_are_plain_numbers():
    assert shapes({"a": torch.zeros(2, 3), "b": torch.zeros(())}) == {"a": (2, 3), "b": ()}


def test_the_interpolation_of_a_model_is_its_own(models, tmp_path):
    config = {"model_cfg": CONFIGS["small"], "preprocess_cfg": {"interpolation": "bilinear"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    classifier = OpenClipClassifier(str(tmp_path), None, ["a"], head="linear")
    assert classifier.preprocess.interpolation == "bilinear"
    assert classifier.preprocess.size == (32, 32)
