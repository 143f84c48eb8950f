from __future__ import annotations

from pathlib import Path

import pytest
from support.imagenet_trees import Sees, find, paint, plant_val, refusal

from cfmask import evaluate
from cfmask.shift import UNKNOWN
from cfmask.wordnet import synsets

NEAR, FAR = ("n00000001", "n00000002"), ("n00000003",)


def plant(root: Path) -> None:
    plant_val(root / "val", (0, 7, 998))
    for ids, name in ((NEAR, "near"), (FAR, "far")):
        (root / "ssb").mkdir(exist_ok=True)
        (root / "ssb" / f"{name}.txt").write_text("\n".join(ids) + "\n")
        for k, one in enumerate(ids):
            paint(root / "imagenet21k-p" / "val" / one / "a.JPEG", 5)
            paint(root / "imagenet21k-p" / "val" / one / f"{k}.JPEG", 6)
    # Of a class in no list.
    paint(root / "imagenet21k-p" / "val" / "n00000009" / "a.JPEG", 5)


def test_the_classes_of_the_lists_are_told_from_val(tmp_path):
    plant(tmp_path)
    val, near, far = find(tmp_path, "imagenet/val", "ssb")
    assert [s.name for s in (near, far)] == ["ssb/near", "ssb/far"]
    assert (near.unknown, near.found.images, far.found.images) == (True, 4, 2)
    assert {label for _, label in near.samples} == {UNKNOWN}
    report = evaluate({"m": Sees()}, [val, near, far])
    # Every image looks alike to a model that is equally sure of each.
    assert report.value("m", "ssb/near", "auroc_max_logit") == 0.5
    assert report.value("m", "ssb/far", "fpr95_softmax") == 1
    assert {row.shift for row in report.of("accuracy")} == {"imagenet/val"}
    # All is taken for class 7, equally surely: one of val's three is right, and ties with all.
    less = evaluate({"m": Sees(distraction=7)}, [val, near])
    assert less.value("m", "ssb/near", "oscr_max_logit") == pytest.approx(0.5 / 3)
    (only,) = find(tmp_path, "ssb/far")
    assert only.name == "ssb/far"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"n00000001\n{synsets()[3]}\n", f"'{synsets()[3]}' is one of its own"),
        ("n00000001\n{}\n", "but got '{}'"),
        ("", "but got none"),
        ("n00000001\nn00000077\n", "but 1 have none: n00000077; complete the images"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(tmp_path, text, said):
    plant(tmp_path)
    (tmp_path / "ssb" / "near.txt").write_text(text)
    assert said in refusal(tmp_path, "ssb/near")
    find(tmp_path, "ssb/far")


def test_absent_lists_and_images_are_refused(tmp_path):
    (tmp_path / "ssb").mkdir()
    assert "near.txt or" in refusal(tmp_path, "ssb")
    assert "DATA_ROOT/ssb/near.txt" in refusal(None, "ssb")
    assert "Expected CNS-Bench in None" in refusal(None, "cns")
    assert "ssb/near" in refusal(tmp_path, "ssb/hard")
    (tmp_path / "ssb" / "far.txt").write_text("n00000003")
    assert "Expected the validation images of ImageNet-21K-P" in refusal(tmp_path, "ssb")
