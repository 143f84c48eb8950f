"""What may be added to masked distillation: labels that are kept, colours that are changed."""

from __future__ import annotations

import copy

import pytest
import torch
from support.small_methods import build, count_passes, fit

from cfmask import (
    BlurFill,
    ContextMask,
    Counterfactual,
    InputError,
    MaskedDistillation,
    NoFill,
    ObjectMask,
)

BOTH = [Counterfactual(ObjectMask(0.3), BlurFill()), Counterfactual(ContextMask(0.5), BlurFill())]


@pytest.mark.parametrize("copies", [1, 2])
def test_the_cross_entropy_is_that_of_the_images_whose_object_stays(copies, tiny_clip, digit_batch):
    images, labels = digit_batch[0].double(), digit_batch[1]
    net = tiny_clip.double()
    method = build(MaskedDistillation, net, counterfactual=BOTH, copies=copies, label_weight=0.6)
    plain = build(MaskedDistillation, net, counterfactual=BOTH, copies=copies)
    got, without = method.losses(images, labels), plain.losses(images, labels)
    assert set(got) == {"task", "distill", "label"} and set(without) == {"task", "distill"}
    for name, value in without.items():
        torch.testing.assert_close(got[name], value, check_dtype=False)
    _, relevance = method.relevance.explain(net, images, labels)
    shown, _ = BOTH[1](images, relevance)
    expected = 0.0
    for image, label in zip(shown, labels):
        logits = net(image[None])[0].detach()
        expected += 0.6 * (logits.exp().sum().log() - logits[label]).item() / len(labels)
    assert got["label"].item() == pytest.approx(expected, rel=1e-5)


def test_one_backward_gives_the_gradient_of_two(tiny_clip, tmp_path):
    """Also where a part with a label is not the last one, whose graph is freed."""
    found = []
    for two_backwards in (True, False):
        method = build(
            MaskedDistillation,
            copy.deepcopy(tiny_clip),
            counterfactual=BOTH[::-1],
            label_weight=1.0,
            two_backwards=two_backwards,
            lr=1e-3,
        )
        torch.manual_seed(0)
        fit(method, tmp_path, 2)
        found.append(method)
    logged = [one.trainer.logged_metrics for one in found]
    assert logged[0]["loss/label"] > 0
    for name, value in logged[0].items():
        torch.testing.assert_close(value, logged[1][name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found[0].classifier.encoder.proj, found[1].classifier.encoder.proj, rtol=1e-3, atol=1e-5
    )


def test_it_takes_no_pass_of_its_own(tiny_clip, digit_batch):
    method = build(MaskedDistillation, tiny_clip, counterfactual=BOTH, label_weight=1.0)
    student = count_passes(tiny_clip)
    method.losses(*digit_batch)
    assert student == [8, 8, 8]
    assert method.passes() == build(MaskedDistillation, tiny_clip, counterfactual=BOTH).passes()


def test_masks_that_hide_the_object_keep_no_label(tiny_clip):
    for weight in (1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"such as ContextMask, but got .* and ObjectMask"):
            build(MaskedDistillation, tiny_clip, label_weight=weight)
    none = Counterfactual(ContextMask(0.5), NoFill())
    assert build(MaskedDistillation, tiny_clip, counterfactual=none, label_weight=1).label_weight
