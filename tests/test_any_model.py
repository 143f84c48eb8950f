"""Any module or function with its transform: judged as a plain loop over the pictures judges it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.any_models import NAMES, TRANSFORM, by_hand, counts, net, sets_of
from support.evaluation import in_processes
from torch import nn
from torchvision import transforms

from cfmask import (
    InputError,
    ModuleClassifier,
    Request,
    ShiftReport,
    digits,
    evaluate,
    find_shifts,
)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_module_with_its_transform_is_judged_as_by_a_loop(photos, workers):
    module = net().train()
    report = evaluate(module, sets_of(photos), 3, workers=workers, transform=TRANSFORM)
    expected = by_hand(module, photos)
    assert counts(report, "Sequential") == expected
    assert 0 < expected["folders/id"][0] < 7
    assert all(part.training for part in module.modules())
    # Without names its classes are numbers.
    assert report.details["Sequential"]["folders/id"]["classes"]["names"] == ["0", "1", "2"]
    told = report.protocol["models"]["Sequential"]["preprocess"]["transform"]
    assert "CenterCrop(size=(8, 8))" in told


def test_modules_functions_and_classifiers_stand_in_one_report(photos):
    first, second = net(), net()
    with torch.no_grad():
        second[1].weight.neg_()
    plain = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
    seen = ModuleClassifier(net(), class_names=NAMES, image_size=8)

    def arrays(images: torch.Tensor) -> np.ndarray:
        return second.eval()(images).detach().numpy()

    models = {"module": first, "function": (arrays, plain), "classifier": seen}
    report = evaluate(models, sets_of(photos), transform=TRANSFORM, class_names=NAMES)
    assert counts(report, "module") == by_hand(first, photos)
    assert counts(report, "function") == by_hand(second, photos, plain)
    assert counts(report, "classifier") == counts(evaluate(seen, sets_of(photos)), "Sequential")
    assert report.details["function"]["folders/id"]["classes"]["names"] == list(NAMES)
    assert {d.first for d in report.differences} == {"module"}


def test_sets_that_draw_their_images_are_seen_through_the_transform(tiny_clip):
    shifts = find_shifts(["digits/id"], Request(None, digits.CLASS_NAMES, 10))
    classifier = tiny_clip.eval()
    # The module inside, and the normalisation that its classifier has inside.
    module = nn.Sequential(classifier.encoder, classifier.head)
    mean, std = classifier.spec.mean, classifier.spec.std
    look = [transforms.Resize(48), transforms.ToTensor(), transforms.Normalize(mean, std)]
    models = {"classifier": classifier, "module": (module, transforms.Compose(look))}
    report = evaluate(models, shifts)
    assert counts(report, "module") == counts(report, "classifier")
    same = [report.value(name, "digits/id", "nll") for name in models]
    assert same[0] == pytest.approx(same[1], abs=1e-4)


def test_several_processes_count_every_image_once(photos, tmp_path):
    def make(path: Path) -> None:
        evaluate(net(), sets_of(photos), 2, transform=TRANSFORM).save(path)

    expected = evaluate(net(), sets_of(photos), 2, transform=TRANSFORM)
    in_processes(2, tmp_path / "out", make)
    for rank in range(2):
        report = ShiftReport.load(tmp_path / "out" / f"{rank}.json")
        assert counts(report, "Sequential") == by_hand(net(), photos)
        # Batches of other sizes round otherwise.
        figures = [row.value for row in report.rows]
        assert figures == pytest.approx([row.value for row in expected.rows])


def test_answers_are_kept_of_classifiers_alone(photos, tmp_path):
    seen = ModuleClassifier(net(), class_names=NAMES, image_size=8)
    models = {"module": (net(), TRANSFORM), "classifier": seen}

    def read() -> int:
        return evaluate(models, sets_of(photos), store=tmp_path).run["images"]

    # Each preprocessing reads its 11 images.
    assert (read(), read()) == (22, 11)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unreadable_picture_counts_as_wrong(photos, tmp_path):
    import shutil

    root = shutil.copytree(photos, tmp_path / "trees")
    victims = sorted((root / "id").rglob("*.png"))
    before = counts(evaluate(net(), sets_of(root), transform=TRANSFORM), "Sequential")
    victims[0].write_bytes(b"no picture")
    report = evaluate(net(), sets_of(root), transform=TRANSFORM, unreadable="wrong")
    assert report.protocol["sets"]["folders/id"]["unreadable"] == [str(victims[0])]
    after = counts(report, "Sequential")
    assert after["folders/sketch"] == before["folders/sketch"]
    assert after["folders/id"][1] == 7
    assert before["folders/id"][0] - after["folders/id"][0] in (0, 1)


REFUSED = {
    "no transform": (lambda: net(), None, r"Sequential without one; give evaluate\(…, transform"),
    "not callable": (
        lambda: "resnet50",
        TRANSFORM,
        "Expected a classifier, or a module or function",
    ),
    "bytes": (
        lambda: net(),
        transforms.PILToTensor(),
        r"float tensor \(C, H, W\), but got torch.uint8",
    ),
    "a picture": (lambda: net(), transforms.Resize(8), r"float tensor \(C, H, W\), but got Image"),
    "sizes": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(8), net()),
        transforms.ToTensor(),
        r"one size, but got images of \(3, 20, 30\) and of",
    ),
    "features": (
        lambda: nn.Conv2d(3, 4, 3),
        TRANSFORM,
        r"Conv2d to give logits \(1, K\) for images \(1, 3, 8, 8\), but got \(1, 4, 6, 6\)",
    ),
    "an object": (lambda: lambda images: {"logits": images}, TRANSFORM, "but got dict; wrap it"),
    "few classes": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        TRANSFORM,
        "labels among the 2 classes of the head, but got 2",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_none_is_refused_in_one_line(photos, kind):
    make, transform, line = REFUSED[kind]
    with pytest.raises(InputError, match=line) as caught:
        evaluate(make(), sets_of(photos), transform=transform)
    assert "\n" not in str(caught.value)


def test_names_of_other_classes_are_refused(photos):
    with pytest.raises(InputError, match="a logit for each of 2 class names, but got 3"):
        evaluate(net(), sets_of(photos), transform=TRANSFORM, class_names=["a", "b"])
    seen = ModuleClassifier(net(), class_names=NAMES, image_size=8)
    with pytest.raises(InputError, match="classifiers alone, which bring both"):
        evaluate(seen, sets_of(photos), transform=TRANSFORM)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_ones_own_code_keep_their_traceback(photos, workers):
    def broken(picture):
        return {}["transform"] if picture.width != 256 else TRANSFORM(picture)

    with pytest.raises(KeyError, match="transform"):
        evaluate(net(), sets_of(photos), workers=workers, transform=broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        evaluate(nn.Linear(5, 3), sets_of(photos), transform=TRANSFORM)
