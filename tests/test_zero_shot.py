"""The zero-shot head against open_clip's own way to the same logits."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

import cfmask
from cfmask import OpenClipClassifier, digits
from cfmask.comparison.sources import Labels, named_classifier

TINY_CLIP = Path(cfmask.__file__).parent / "tiny_clip"
NAMES = ["tench", "goldfish", "red panda"]


def logits_of_open_clip(model, tokenizer, names, templates, images) -> torch.Tensor:
    """As open_clip's own zero-shot evaluation has it, but for its fixed factor of 100."""
    makers = [lambda name, template=template: template.format(name) for template in templates]
    weight = open_clip.build_zero_shot_classifier(model, tokenizer, names, makers, 10)
    with torch.no_grad():
        return model.logit_scale.exp() * model.encode_image(images, normalize=True) @ weight


def test_the_logits_of_tiny_clip_are_those_of_open_clip():
    name = f"local-dir:{TINY_CLIP}"
    model = open_clip.create_model(name).eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        bpe_path=str(TINY_CLIP / "merges.txt.gz"), context_length=model.context_length
    )
    classifier = named_classifier(
        "open_clip:tiny-clip", Labels(digits.CLASS_NAMES, digits.TEMPLATES)
    )
    images = digits.digit_set("id", 16, 0).images.float() / 255
    normalised = (images - classifier.mean) / classifier.std
    expected = logits_of_open_clip(
        model, tokenizer, list(digits.CLASS_NAMES), digits.TEMPLATES, normalised
    )
    with torch.no_grad():
        assert torch.allclose(classifier(images), expected, atol=1e-5, rtol=1e-5)
    assert (expected.argmax(1) == digits.digit_set("id", 16, 0).labels).float().mean() > 0.4


@pytest.mark.slow
def test_the_logits_of_a_vit_b_32_are_those_of_open_clip():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    torch.manual_seed(0)
    templates = ["a photo of a {}.", "a sketch of a {}."]
    classifier = OpenClipClassifier("ViT-B-32-quickgelu", None, NAMES, templates)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    normalised = (images - classifier.mean) / classifier.std
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    expected = logits_of_open_clip(model, tokenizer, NAMES, templates, normalised)
    with torch.no_grad():
        assert torch.allclose(classifier(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3


def test_names_and_prompts_for_imagenet_are_openais():
    from open_clip import zero_shot_metadata

    from cfmask.comparison.sources import labels_of

    labels = labels_of(["imagenet"], None)
    assert labels.names == tuple(zero_shot_metadata.IMAGENET_CLASSNAMES)
    classifier = named_classifier("open_clip:tiny-clip", Labels(labels.names[:2], labels.templates))
    ours = [template.format("cat") for template in classifier.spec.options["templates"]]
    assert ours == [make("cat") for make in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES]


@pytest.mark.parametrize("what", ["open_clip:tiny-clip", "open_clip:tiny-clip/random"])
def test_what_is_named_does_not_change_from_call_to_call(what):
    torch.manual_seed(0)
    first = named_classifier(what, Labels(("a", "b"), ("{}",)))
    torch.manual_seed(0)
    second = named_classifier(what, Labels(("a", "b"), ("{}",)))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values())
    )
