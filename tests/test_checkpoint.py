from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.checkpoints import (
    NAMES,
    TEMPLATES,
    Evil,
    clip,
    clip_folder,
    timm,
    training_checkpoint,
)

from cfmask import (
    Classifier,
    InputError,
    OpenClipClassifier,
    Spec,
    interpolate,
    load_classifier,
    save_classifier,
)
from cfmask.checkpoint import PRETRAINED, WEIGHTS
from cfmask.weights import read_tensors

MAKERS = {
    "test_vit of another size": lambda path: timm("test_vit", 64),
    "test_resnet": lambda path: timm("test_resnet", 64),
    "open_clip": clip,
    "open_clip with a linear head and QuickGELU": lambda path: clip(
        path, "linear", quick_gelu=True
    ),
}


@pytest.fixture(scope="module", params=MAKERS)
def original(request, tmp_path_factory) -> Classifier:
    return shaken(MAKERS[request.param](tmp_path_factory.mktemp("made") / "clip"))


@pytest.fixture
def classifier(original) -> Classifier:
    return copy.deepcopy(original)


def shaken(classifier: Classifier) -> Classifier:
    """The classifier with every weight and statistic moved, as tuning would."""
    torch.manual_seed(2)
    for value in classifier.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))
        else:
            value.add_(3)
    return classifier.eval()


def images(classifier: Classifier) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, *classifier.image_size, generator=rng)


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def test_a_loaded_classifier_gives_the_same_logits_to_the_bit(classifier, tmp_path):
    classifier.train()
    # A path may be a text.
    save_classifier(classifier, str(tmp_path / "x.safetensors"))
    torch.manual_seed(7)
    loaded = load_classifier(str(tmp_path / "x.safetensors"))
    assert type(loaded) is type(classifier)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(images(classifier)), classifier.eval()(images(classifier)))
    for name in ("class_names", "preprocess", "image_size", "layout", "name"):
        assert getattr(loaded, name) == getattr(classifier, name)


def test_a_classifier_is_saved_again_to_the_same_file(classifier, tmp_path):
    save_classifier(classifier, tmp_path / "x.safetensors")
    save_classifier(load_classifier(tmp_path / "x.safetensors"), tmp_path / "y.safetensors")
    files = [tmp_path / name for name in ("x.safetensors", "y.safetensors")]
    assert same_tensors(*(read_tensors(file) for file in files))
    texts = []
    for file in files:
        with safe_open(file, "pt") as content:
            texts.append(content.metadata())
    assert texts[0] == texts[1]


def test_the_spec_of_a_classifier_is_plain_json(classifier):
    assert Spec.of(json.loads(json.dumps(classifier.spec.plain()))) == classifier.spec


@torch.no_grad()
def test_loading_reads_nothing_but_the_file(tmp_path, monkeypatch):
    original = clip(tmp_path / "clip")
    save_classifier(original, tmp_path / "x.safetensors")
    (tmp_path / "clip" / "open_clip_config.json").unlink()
    monkeypatch.setattr("open_clip.create_model", None)
    loaded = load_classifier(tmp_path / "x.safetensors")
    assert torch.equal(loaded(images(loaded)), original(images(loaded)))


def test_a_run_folder_has_the_tuned_weights_and_the_starting_point(tmp_path):
    start = timm()
    save_classifier(start, tmp_path / PRETRAINED)
    tuned = shaken(copy.deepcopy(start))
    save_classifier(tuned, tmp_path / WEIGHTS)
    assert same_tensors(load_classifier(tmp_path).state_dict(), tuned.state_dict())
    loaded = load_classifier(str(tmp_path), PRETRAINED)
    assert same_tensors(loaded.state_dict(), start.state_dict())


def test_saving_replaces_an_older_file_and_leaves_no_other(tmp_path):
    (tmp_path / "x.safetensors").write_text("old")
    save_classifier(timm(), tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_classifier(tmp_path / "x.safetensors").name == "test_vit"


@torch.no_grad()
def test_a_training_checkpoint_holds_the_student_and_no_teacher(classifier, tmp_path):
    path = training_checkpoint(tmp_path / "x.ckpt", classifier)
    names = torch.load(path, weights_only=True)["state_dict"].keys()
    assert names >= {f"classifier.{name}" for name in classifier.state_dict()}
    assert not [name for name in names if "teacher" in name]
    loaded = load_classifier(path)
    assert torch.equal(loaded(images(loaded)), classifier.eval()(images(loaded)))


def pair(classifier: Classifier) -> tuple[Classifier, Classifier]:
    """A starting point and another set of weights for it."""
    return copy.deepcopy(classifier), shaken(copy.deepcopy(classifier))


def test_interpolation_at_its_ends_gives_the_ends(classifier):
    start, tuned = pair(classifier)
    for alpha, end in ((0, start), (1, tuned)):
        mixed = interpolate(start, tuned, alpha).state_dict()
        assert same_tensors(
            {k: v for k, v in mixed.items() if v.is_floating_point()},
            {k: v for k, v in end.state_dict().items() if v.is_floating_point()},
        )


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@torch.no_grad()
def test_interpolation_mixes_every_weight_and_statistic(classifier, alpha):
    start, tuned = pair(classifier)
    before = [copy.deepcopy(model.state_dict()) for model in (start, tuned)]
    mixed = interpolate(start, tuned, alpha)
    for name, value in mixed.state_dict().items():
        if value.is_floating_point():
            a, b = before[0][name].double(), before[1][name].double()
            expected = ((1 - alpha) * a + alpha * b).float()
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(mixed(images(mixed)), tuned(images(mixed)))
    assert same_tensors(before[0], start.state_dict())
    assert same_tensors(before[1], tuned.state_dict())
    mixed.head.weight.zero_()
    assert same_tensors(before[1], tuned.state_dict())


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_weight_outside_the_unit_range_is_refused(alpha):
    model = timm()
    with pytest.raises(InputError, match="alpha"):
        interpolate(model, model, alpha)


OTHERS = {
    "another encoder": lambda path: timm("test_vit", 64),
    "another width": lambda path: clip(path, width=48),
    "another number of classes": lambda path: OpenClipClassifier(
        clip_folder(path), None, NAMES[:2], TEMPLATES
    ),
    "another activation": lambda path: clip(path, quick_gelu=True),
}


@pytest.mark.parametrize("other", OTHERS)
def test_weights_of_two_architectures_are_not_mixed(tmp_path, other):
    with pytest.raises(InputError, match="one architecture"):
        interpolate(clip(tmp_path / "a"), OTHERS[other](tmp_path / "b"), 0.5)


def refusal(path: Path) -> str:
    """The one line by which a file is refused."""
    with pytest.raises(InputError) as caught:
        load_classifier(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_weights_are_named(tmp_path, share):
    path = tmp_path / "x.safetensors"
    save_classifier(timm(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_training_checkpoint_is_named(tmp_path, share):
    path = training_checkpoint(tmp_path / "x.ckpt", timm())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refusal(path)


def bare_pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, bare_pickle])
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path, write):
    path, made = tmp_path / "x.ckpt", tmp_path / "made"
    content = {"classifier": timm().spec.plain(), "state_dict": {}, "extra": Evil(made)}
    pickle.loads(pickle.dumps(content))
    made.rmdir()
    write(content, path)
    assert "code" in refusal(path)
    with pytest.raises(InputError):
        read_tensors(path)
    assert not made.exists()


def test_a_missing_path_is_named(tmp_path):
    refusal(tmp_path / "none.safetensors")
    refusal(tmp_path / "none" / "none.ckpt")


def test_a_folder_without_weights_is_named(tmp_path):
    assert WEIGHTS in refusal(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"classifier": "{"}])
def test_weights_that_do_not_name_their_classifier_are_refused(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    refusal(path)


def test_a_training_checkpoint_of_another_project_is_refused(tmp_path):
    torch.save({"state_dict": {"classifier.weight": torch.zeros(2)}}, tmp_path / "x.ckpt")
    refusal(tmp_path / "x.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "y.ckpt")
    refusal(tmp_path / "y.ckpt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"123")
    refusal(tmp_path / "x.bin")


def test_weights_of_another_shape_than_the_spec_says_are_refused(tmp_path):
    classifier, path = timm(), tmp_path / "x.safetensors"
    tensors = dict(classifier.state_dict())
    spec = json.dumps({**classifier.spec.plain(), "head_shape": [3, 65]})
    save_file(tensors, path, {"classifier": spec})
    assert "head.weight" in refusal(path)
    del tensors["head.bias"]
    save_file(tensors, path, {"classifier": json.dumps(classifier.spec.plain())})
    assert "head.bias" in refusal(path)


def test_a_family_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    spec = {**timm().spec.plain(), "class_path": "TimmClasifier"}
    save_file({"w": torch.zeros(1)}, path, {"classifier": json.dumps(spec)})
    with pytest.raises(InputError, match="Nearest: TimmClassifier"):
        load_classifier(path)


@pytest.mark.parametrize("spec", ['{"family": "TimmClassifier"}', "[1]"])
def test_a_spec_that_lacks_something_is_refused(tmp_path, spec):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(1)}, path, {"classifier": spec})
    with pytest.raises(InputError):
        load_classifier(path)
