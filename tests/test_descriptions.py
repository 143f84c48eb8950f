"""Zero-shot heads from descriptions, against a slow loop and the released code's rule."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from cfmask import FLYP, OpenClipClassifier, digits, load_classifier, save_classifier
from cfmask.commands.train_model import command_line
from cfmask.descriptions import read_descriptions, sentence
from cfmask.errors import InputError
from cfmask.families.pretrained import load_clip, tokenizer_of

WORDS = {name: ["a line", "two rings"][: 1 + k % 2] for k, name in enumerate(digits.CLASS_NAMES)}


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        ("a red comb", "hen, which is a red comb."),
        ("antlers", "hen, which is antlers."),
        ("has wings", "hen, which has wings."),
        ("often white", "hen, which often white."),
        ("typically small", "hen, which typically small."),
        ("may fly", "hen, which may fly."),
        ("can fly", "hen, which can fly."),
        ("used for eggs", "hen, which is used for eggs."),
        ("two legs", "hen, which has two legs."),
        ("", "hen, which has ."),
    ],
)
def test_the_sentences_are_those_of_the_released_code(descriptor, expected):
    assert sentence("hen", descriptor) == expected


@pytest.mark.parametrize("normalise", [True, False])
def test_a_logit_is_the_mean_cosine_of_the_descriptors(tmp_path, normalise):
    file = tmp_path / "own words.json"
    file.write_text(json.dumps(dict(reversed(WORDS.items()))))
    net = OpenClipClassifier(
        "tiny-clip", None, digits.CLASS_NAMES, descriptions=str(file), normalise=normalise
    ).eval()
    save_classifier(net, tmp_path / "net.safetensors")
    again = load_classifier(tmp_path / "net.safetensors")
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    clip, _ = load_clip("tiny-clip", None)
    tokenizer = tokenizer_of("tiny-clip", clip)
    with torch.no_grad():
        seen = F.normalize(net.features(images), dim=-1)
        for k, (name, texts) in enumerate(WORDS.items()):
            read = [clip.encode_text(tokenizer([sentence(name, text)]))[0] for text in texts]
            mean = sum(text / text.norm() for text in read) / len(read)
            mean = mean / mean.norm() if normalise else mean
            expected = clip.logit_scale.exp() * (seen @ mean)
            torch.testing.assert_close(again(images)[:, k], expected, rtol=1e-4, atol=1e-3)
    assert again.spec.options["descriptions"] == WORDS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "Expected {"),
        ({"ant": ["a"]}, "'bee' is missing"),
        ({"ant": [], "bee": [], "wasp": []}, "wasp"),
        ({"ant": "a", "bee": []}, "a list of texts for 'ant'"),
    ],
)
def test_bad_descriptions_are_one_line(tmp_path, content, told):
    file = tmp_path / "words.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_descriptions(file, ["ant", "bee"])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_an_empty_list_is_one_empty_descriptor(tmp_path):
    file = tmp_path / "words.json"
    file.write_text('{"bee": [], "ant": ["six legs"]}')
    found = read_descriptions(file, ["ant", "bee"])
    assert list(found.items()) == [("ant", ["six legs"]), ("bee", [""])]


def test_a_run_from_the_command_has_the_described_head(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps(WORDS))
    words = ["--config", "demo", "--run", str(tmp_path / "run"), "--descriptions", str(file)]
    made = command_line(words).model.classifier
    expected = OpenClipClassifier(
        "tiny-clip", None, digits.CLASS_NAMES, descriptions=str(file)
    ).head.weight
    torch.testing.assert_close(made.head.weight, expected)
    assert made.spec.options["descriptions"] == WORDS
    with pytest.raises(InputError, match="made from descriptions"):
        FLYP(made)
