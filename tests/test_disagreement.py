from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from cfmask import (
    AttentionRelevance,
    AttentionRollout,
    GradCAM,
    InputError,
    OpenClipClassifier,
    Relevance,
    ShiftReport,
    UnreadableImage,
    digits,
)
from cfmask.comparison.examples import disagreements, gallery
from cfmask.data.datamodule import Tensors
from cfmask.inference.wise import Blend, WeightLine
from cfmask.reporting.page import as_html
from cfmask.shift import Shift

COUNT = 60


@pytest.fixture(scope="module")
def pair(_tiny_clip) -> tuple[OpenClipClassifier, OpenClipClassifier]:
    """The tiny CLIP and a copy that has forgotten some of it."""
    first, second = copy.deepcopy(_tiny_clip).eval(), copy.deepcopy(_tiny_clip).eval()
    with torch.no_grad():
        for weight in second.encoder.parameters():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
            weight += 0.3 * noise * (weight.std() if weight.ndim > 1 else 0)
    return first, second


@pytest.fixture(scope="module")
def drawn() -> digits.DigitSet:
    return digits.digit_set("id", COUNT, 0)


@pytest.fixture(scope="module")
def guesses(pair, drawn) -> torch.Tensor:
    """Logits (2, N, K) of both models."""
    with torch.no_grad():
        return torch.stack([model(drawn.images.float() / 255) for model in pair])


def shift_of(drawn: digits.DigitSet, name: str = "id") -> Shift:
    return Shift(name, lambda preprocess: Tensors(drawn.images, drawn.labels))


def test_exactly_one_of_the_two_is_right_on_every_image(pair, drawn, guesses):
    right = guesses.argmax(2) == drawn.labels
    expected = {i for i in range(COUNT) if right[0, i] != right[1, i]}
    found = disagreements(*pair, [shift_of(drawn)], count=2 * COUNT, batch_size=7, names=("a", "b"))
    assert len(expected) > 5
    assert {item.index for item in found} == expected
    assert len(found) == len(expected)
    for item in found:
        assert torch.equal(item.image, drawn.images[item.index])
        assert item.label == digits.CLASS_NAMES[drawn.labels[item.index]]
        assert (item.first.model, item.second.model) == ("a", "b")
        for k, answer in enumerate((item.first, item.second)):
            assert answer.right == right[k, item.index]
            shares = guesses[k, item.index].softmax(0)
            assert answer.name == digits.CLASS_NAMES[shares.argmax()]
            assert answer.confidence == pytest.approx(float(shares.max()), abs=1e-5)


class InFiles(Tensors):
    """Images as a folder has them."""

    @property
    def samples(self) -> list[tuple[str, int]]:
        return [(f"some/folder/{k}.png", int(label)) for k, label in enumerate(self.labels)]


def test_an_image_in_a_file_is_known_by_its_name(pair, drawn):
    shift = Shift("id", lambda preprocess: InFiles(drawn.images, drawn.labels))
    found = disagreements(*pair, [shift], count=3)
    assert len(found) == 3
    assert [item.file for item in found] == [f"{item.index}.png" for item in found]
    assert {item.file for item in disagreements(*pair, [shift_of(drawn)], count=3)} == {""}


def test_relevance_is_that_of_each_model_for_the_true_class(pair, drawn):
    item = disagreements(*pair, [shift_of(drawn)])[0]
    batch = drawn.images[item.index : item.index + 1].float() / 255
    label = drawn.labels[item.index].view(1)
    for model, answer in zip(pair, (item.first, item.second)):
        expected = AttentionRelevance().explain(model, batch, label)[1][0]
        assert torch.allclose(answer.relevance, expected, atol=1e-5)
    assert not torch.allclose(item.first.relevance, item.second.relevance, atol=1e-2)


def test_both_kinds_are_shown_and_few(pair, drawn):
    shifts = [shift_of(drawn), shift_of(drawn, "again")]
    found = disagreements(*pair, shifts, count=2)
    assert [item.shift for item in found] == ["id"] * 2 + ["again"] * 2
    assert [item.first.right for item in found[:2]] == [True, False]
    assert [item.index for item in found[:2]] == [item.index for item in found[2:]]


def test_no_more_images_are_looked_at_than_allowed(pair, drawn):
    seen = []

    class Watched(Tensors):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    shift = Shift("id", lambda preprocess: Watched(drawn.images, drawn.labels))
    disagreements(*pair, [shift], count=2 * COUNT, limit=20, batch_size=8)
    assert len(seen) == len(set(seen)) == 20
    # They are not the first ones: sets are often sorted by class.
    assert sorted(seen) != list(range(20))


def test_answers_keep_to_the_classes_of_the_set(pair, drawn, guesses):
    few = drawn.labels < 3
    data = Tensors(drawn.images[few], drawn.labels[few])
    shift = Shift("part", lambda preprocess: data, classes=(0, 1, 2))
    right = guesses[:, few, :3].argmax(2) == data.labels
    found = disagreements(*pair, [shift], count=2 * COUNT)
    assert {i.index for i in found} == set((right[0] != right[1]).nonzero().flatten().tolist())
    assert found
    assert {a.name for i in found for a in (i.first, i.second)} <= set(digits.CLASS_NAMES[:3])


def test_a_label_of_several_classes_is_named_by_all_of_them(pair, drawn, guesses):
    data = Tensors(drawn.images, 100 + drawn.labels // 5)
    accepts = {100: (0, 1, 2, 3, 4), 101: (5, 6, 7, 8, 9)}
    shift = Shift("x", lambda preprocess: data, accepts=accepts)
    right = guesses.argmax(2) // 5 == drawn.labels // 5
    found = disagreements(*pair, [shift], count=2 * COUNT)
    assert {i.index for i in found} == set((right[0] != right[1]).nonzero().flatten().tolist())
    assert {i.label for i in found} <= {
        "zero / one / two / three / four",
        "five / six / seven / eight / nine",
    }
    item = found[0]
    likeliest = max(
        accepts[100 + int(drawn.labels[item.index] // 5)],
        key=guesses[0, item.index].tolist().__getitem__,
    )
    batch = drawn.images[item.index : item.index + 1].float() / 255
    expected = AttentionRelevance().explain(pair[0], batch, torch.tensor([likeliest]))[1][0]
    assert torch.allclose(item.first.relevance, expected, atol=1e-5)


def test_an_image_that_cannot_be_read_is_left_out(pair, drawn):
    found = disagreements(*pair, [shift_of(drawn)], count=2 * COUNT)
    broken = found[0].index

    class Broken(Tensors):
        def __getitem__(self, index):
            if index == broken:
                raise UnreadableImage("Cannot read image x.png.")
            return super().__getitem__(index)

    shift = Shift("id", lambda preprocess: Broken(drawn.images, drawn.labels))
    left = disagreements(*pair, [shift], count=2 * COUNT)
    assert [item.index for item in left] == [item.index for item in found[1:]]


def test_a_cnn_is_explained_by_grad_cam(small_cnn):
    first = small_cnn.eval()
    second = copy.deepcopy(first)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 96, 96), generator=rng).byte()
    data = Tensors(images, first(images.float() / 255).argmax(1))
    with torch.no_grad():
        second.head.bias[(data.labels[0] + 1) % 3] += 1000
    item = disagreements(first, second, [Shift("x", lambda preprocess: data)], count=1)[0]
    batch = images[item.index : item.index + 1].float() / 255
    expected = GradCAM().explain(first, batch, data.labels[item.index].view(1))[1][0]
    assert torch.allclose(item.first.relevance, expected, atol=1e-5)
    assert item.first.right and not item.second.right


def test_models_that_cannot_be_compared_are_refused(pair, small_cnn, drawn):
    with pytest.raises(InputError, match="same classes"):
        disagreements(pair[0], small_cnn, [shift_of(drawn)])
    other = copy.copy(pair[1])
    other.preprocess = replace(other.preprocess, crop_pct=0.9)
    with pytest.raises(InputError, match="preprocessing"):
        disagreements(pair[0], other, [shift_of(drawn)])


def test_models_that_agree_give_nothing(pair, drawn):
    assert disagreements(pair[0], pair[0], [shift_of(drawn)]) == []


def shown(found) -> set[tuple[str, str]]:
    return {(item.first.model, item.second.model) for item in found}


def test_a_gallery_is_of_the_ends_of_a_line(pair, drawn):
    blend = Blend(WeightLine(*pair), 0.5)
    other = copy.deepcopy(pair[0])
    models = {"other": other, "zero-shot": pair[0], "tuned": pair[1], "half": blend}
    assert shown(gallery(models, [shift_of(drawn)])) == {("zero-shot", "tuned")}
    del models["half"]
    del models["zero-shot"]
    assert shown(gallery(models, [shift_of(drawn)])) == {("other", "tuned")}


class HasNone(Relevance):
    """A relevance without maps of these images, as saved ones have none of a test set."""

    def __init__(self) -> None:
        self.path = "maps.safetensors"

    def explain(self, classifier, images, labels):
        raise InputError("Expected saved relevance for all images.")


def test_a_gallery_explains_by_the_relevance_of_the_run_and_says_so(pair, drawn):
    models, sets = {"zero-shot": pair[0], "tuned": pair[1]}, [shift_of(drawn)]
    item = gallery(models, sets, 1, {"tuned": AttentionRollout()})[0]
    batch = drawn.images[item.index : item.index + 1].float() / 255
    label = drawn.labels[item.index].view(1)
    for model, answer in zip(pair, (item.first, item.second)):
        expected = AttentionRollout().explain(model, batch, label)[1][0]
        assert torch.allclose(answer.relevance, expected, atol=1e-5)
        assert answer.explainer == "AttentionRollout(), as the run has it"
    usual = gallery(models, sets, 1)[0]
    fallen = gallery(models, sets, 1, {"zero-shot": HasNone()})[0]
    assert torch.equal(fallen.second.relevance, usual.second.relevance)
    assert usual.second.explainer == "AttentionRelevance(), the default of its architecture"
    reason = ", because HasNone(path=maps.safetensors) of the run has no map"
    assert fallen.second.explainer == usual.second.explainer + reason
    page = as_html(ShiftReport(), [item, fallen])
    assert f"by AttentionRollout(), as the run has it; {fallen.first.explainer}; a yellow" in page


def test_there_is_no_gallery_of_models_that_cannot_be_compared(pair, small_cnn, drawn):
    assert gallery({"one": pair[0]}, [shift_of(drawn)]) == []
    assert gallery({"one": pair[0], "cnn": small_cnn}, [shift_of(drawn)]) == []
    both = {"one": pair[0], "two": pair[1]}
    assert gallery(both, [shift_of(drawn)], count=0) == []
    assert gallery(both, [replace(shift_of(drawn), part_of="c")]) == []
