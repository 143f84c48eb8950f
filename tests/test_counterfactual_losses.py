"""What may be added to masked distillation: labels that are kept, colours that are changed."""

from __future__ import annotations

import colorsys
import copy

import numpy as np
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
    SingleFill,
)
from cfmask.methods.photometric import Photometric

BOTH = [Counterfactual(ObjectMask(0.3), BlurFill()), Counterfactual(ContextMask(0.5), BlurFill())]


def test_the_cross_entropy_is_that_of_the_images_whose_object_stays(tiny_clip, digit_batch):
    images, labels = digit_batch[0].double(), digit_batch[1]
    net = tiny_clip.double()
    method = build(MaskedDistillation, net, counterfactual=BOTH, copies=2, label_weight=0.6)
    plain = build(MaskedDistillation, net, counterfactual=BOTH, copies=2)
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


def recoloured(image: np.ndarray, bright: float, contrast: float, colour: float, turn: float):
    """The same in float64, pixel by pixel, of (H, W, 3)."""

    def grey(pixels):
        return pixels @ [0.2989, 0.587, 0.114]

    image = (image * bright).clip(0, 1)
    image = (contrast * image + (1 - contrast) * grey(image).mean()).clip(0, 1)
    image = (colour * image + (1 - colour) * grey(image)[..., None]).clip(0, 1)
    found = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place])
        found[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return found


def test_colours_change_as_the_formulas_say():
    images = torch.rand(3, 3, 4, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    change = Photometric(0.5)
    torch.manual_seed(1)
    got = change(images)
    torch.manual_seed(1)
    amounts = change.amounts(3).numpy().astype(float)
    assert len(np.unique(amounts)) == 12
    assert (np.abs(amounts - [1, 1, 1, 0]) <= [0.4, 0.4, 0.4, 0.1]).all()
    for image, row, result in zip(images, amounts, got):
        expected = recoloured(image.permute(1, 2, 0).numpy(), *row)
        np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert Photometric(0.0)(images) is images


def test_processes_draw_for_all_images(monkeypatch):
    torch.manual_seed(0)
    whole = Photometric(1.0).amounts(6)
    monkeypatch.setattr("cfmask.methods.photometric.count", lambda: 2)
    for own in (0, 1):
        monkeypatch.setattr("cfmask.methods.photometric.rank", lambda own=own: own)
        torch.manual_seed(0)
        assert torch.equal(Photometric(1.0).amounts(3), whole[own::2])


def test_student_and_teacher_see_the_same_colours_and_the_task_none(tiny_clip, digit_batch):
    seen = []
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    method = build(MaskedDistillation, tiny_clip, counterfactual=make, photometric=1.0)
    for one in (method.classifier, method.teacher):
        one.encoder.conv1.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    torch.manual_seed(0)
    method.losses(*digit_batch)
    clean, student, teacher = (x * tiny_clip.std + tiny_clip.mean for x in seen)
    torch.testing.assert_close(clean, digit_batch[0])
    assert torch.equal(student, teacher)
    torch.manual_seed(0)
    _, relevance = method.relevance.explain(tiny_clip, *digit_batch)
    masked, _ = make(digit_batch[0], relevance)
    torch.testing.assert_close(student, method.photometric(masked), rtol=1e-4, atol=1e-5)
    assert (student - masked).abs().mean() > 0.02
    with pytest.raises(InputError, match=r"photometric in \[0, 1\], but got 2"):
        build(MaskedDistillation, tiny_clip, photometric=2)
