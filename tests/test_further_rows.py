"""Rows with a head from descriptions, against a loop over sentences and images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cfmask import (
    OpenClipClassifier,
    TimmClassifier,
    digits,
    evaluate,
    load_classifier,
    save_classifier,
)
from cfmask.commands.eval_models import evaluate_run
from cfmask.comparison.compare import check_run
from cfmask.comparison.further_rows import with_descriptions
from cfmask.comparison.sources import Found
from cfmask.descriptions import SHIPPED, sentence
from cfmask.errors import InputError
from cfmask.families.described import described
from cfmask.families.pretrained import load_clip, tokenizer_of
from cfmask.shift import Request
from cfmask.shifts.catalogue import find_shifts

COUNT = 30
WORDS = {name: ["a line", "faint"][: 1 + k % 2] for k, name in enumerate(digits.CLASS_NAMES)}


@pytest.fixture(scope="module")
def net() -> OpenClipClassifier:
    return OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES).eval()


@pytest.fixture(scope="module")
def shift(net):
    return find_shifts(["digits/id"], Request(None, digits.CLASS_NAMES, images=COUNT))[0]


def accuracy_by_hand(net, shift, words, normalise) -> float:
    data, (clip, _) = shift.load(net.preprocess), load_clip("tiny-clip", None)
    read, right = tokenizer_of("tiny-clip", clip), 0
    with torch.no_grad():
        means = []
        for name, texts in words.items():
            vectors = [clip.encode_text(read([sentence(name, text)]))[0] for text in texts]
            mean = sum(vector / vector.norm() for vector in vectors) / len(vectors)
            means.append(mean / mean.norm() if normalise else mean)
        for image, label in (data[i] for i in range(COUNT)):
            seen = net.features(image[None] / 255)[0]
            right += max(range(10), key=lambda k: float(seen @ means[k])) == int(label)
    return right / COUNT


@pytest.mark.parametrize("normalise", [True, False])
def test_a_row_has_the_accuracy_of_its_descriptions(net, shift, tmp_path, normalise):
    file = tmp_path / "my words.json"
    file.write_text(json.dumps(WORDS))
    rows = with_descriptions(Found({"mine": net}, {}, {}), str(file), normalise, False)
    first, row = rows.models
    assert (first, rows.starts) == ("mine", {row: "mine"})
    own = evaluate({"mine": net}, [shift], store=tmp_path).value("mine", "digits/id")
    # The folder of answers holds those of the plain head.
    report = evaluate(rows.models, [shift], store=tmp_path)
    expected = accuracy_by_hand(net, shift, WORDS, normalise)
    assert report.value(first, "digits/id") == own != expected
    assert report.value(row, "digits/id") == pytest.approx(expected)


def test_a_classifier_of_a_file_gets_the_shipped_words(net, tmp_path):
    save_classifier(net, tmp_path / "net.safetensors")
    again = load_classifier(tmp_path / "net.safetensors")
    twin = described(again, "digits", normalise=False)
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, seen = again(images), F.normalize(again.features(images), dim=-1)
        assert torch.equal(before, net(images)), "the one given is as it was"
        words = json.loads(SHIPPED["digits"].read_text())
        clip, _ = load_clip("tiny-clip", None)
        tokens = tokenizer_of("tiny-clip", clip)([sentence("six", text) for text in words["six"]])
        cosines = seen @ F.normalize(clip.encode_text(tokens), dim=-1).T
        expected = cosines.mean(1) * clip.logit_scale.exp()
        torch.testing.assert_close(twin(images)[:, 6], expected, rtol=1e-4, atol=1e-3)
    save_classifier(twin, tmp_path / "twin.safetensors")
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path / "twin.safetensors")(images), twin(images))


def test_models_without_a_text_tower_are_refused_before_work(net, tmp_path):
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    with pytest.raises(InputError, match="a model with a text tower"):
        check_run(cnn, ["digits/id"], None, descriptions="digits")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(InputError, match=r"Expected \{"):
        check_run(net, ["digits/id"], None, descriptions=str(tmp_path / "none.json"))
    save_classifier(cnn, tmp_path / "cnn.safetensors")
    args = [str(tmp_path / "cnn.safetensors"), "--shifts", "digits/id", "--descriptions", "digits"]
    with pytest.raises(SystemExit):
        evaluate_run(args)


def test_a_file_loads_no_text_tower_by_name_without_trust(net, tmp_path):
    net = OpenClipClassifier("tiny-clip", None, digits.CLASS_NAMES, digits.TEMPLATES)
    net.spec = replace(net.spec, model="ViT-B-32", options={**net.spec.options, "pretrained": "x"})
    save_classifier(net, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="give --trust true"):
        described(load_classifier(tmp_path / "net.safetensors"), "digits")
