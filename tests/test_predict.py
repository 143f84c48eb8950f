from __future__ import annotations

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.exported import digit_images, plant_run, start, tuned
from torchvision.transforms.functional import to_pil_image

from cfmask import (
    InputError,
    OpenClipClassifier,
    TimmClassifier,
    digits,
    load_classifier,
    save_classifier,
)
from cfmask.commands import predict_images as command
from cfmask.commands.predict_images import predict_images
from cfmask.decoding import read_image
from cfmask.descriptions import sentence
from cfmask.exporting.predicting import Prediction, write_csv
from cfmask.exporting.reading import open_model
from cfmask.exporting.writing import export
from cfmask.families.pretrained import load_clip, tokenizer_of
from cfmask.methods import FineTuning

TINY_CLIP = Path(__file__).parents[1] / "cfmask" / "tiny_clip"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of CLIP. Tests only read it."""
    return plant_run(tmp_path_factory.mktemp("runs") / "run", "tiny-clip")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """A CNN as a .pt2 file, and the run that it was, in the same folder."""
    folder = tmp_path_factory.mktemp("program")
    run = plant_run(folder / "run", "test_resnet")
    export(str(run), "torch_export", str(folder / "pt2"))
    return folder / "pt2" / "model.pt2"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Files of real digits, larger than the model takes them and not square."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [str(folder / f"{i}.png") for i in range(3)]
    for file, image in zip(files, digit_images(96, 3)):
        to_pil_image(image).resize((120, 96)).save(file)
    return files


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that the command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as end:
        predict_images([str(arg) for arg in args])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def predict(*args, **options) -> list[tuple[str, list[tuple[str, float]]]]:
    """File and classes of each picture."""
    return [(one.file, one.classes) for one in command.predict(*args, **options)]


@torch.no_grad()
def test_the_likeliest_classes_are_those_of_the_classifier(run, pictures):
    classifier = tuned("tiny-clip")
    images = torch.stack([classifier.preprocess(read_image(file)) for file in pictures])
    shares = classifier(images.float() / 255).double().softmax(1)
    found = list(predict(str(run), pictures))
    assert [file for file, _ in found] == pictures
    for row, (_, best) in zip(shares.tolist(), found):
        order = sorted(range(10), key=lambda k: -row[k])[:5]
        assert [name for name, _ in best] == [digits.CLASS_NAMES[k] for k in order]
        assert [share for _, share in best] == pytest.approx([row[k] for k in order], abs=1e-5)


def test_the_command_prints_a_table(run, pictures, capsys):
    predict_images([str(run), *pictures, "--top=2"])
    table = capsys.readouterr().out
    for file, best in predict(str(run), pictures, top=2):
        (line,) = [line for line in table.splitlines() if Path(file).name in line]
        assert all(f"{name} {100 * share:.1f}" in line for name, share in best)


def test_the_command_prints_json(run, pictures, capsys):
    predict_images([str(run), *pictures, "--json=true"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == pictures
    for row in rows:
        shares = [found["probability"] for found in row["classes"]]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 5


def test_more_classes_than_there_are_give_all(run, pictures):
    ((_, best),) = predict(str(run), pictures[:1], top=50)
    assert {name for name, _ in best} == set(digits.CLASS_NAMES)
    assert sum(share for _, share in best) == pytest.approx(1, abs=1e-5)


def test_many_pictures_go_in_batches(run, pictures):
    many = list(predict(str(run), pictures * 25))
    once = list(predict(str(run), pictures))
    assert [file for file, _ in many] == pictures * 25
    for (_, got), (_, expected) in zip(many, once * 25):
        assert dict(got) == pytest.approx(dict(expected), abs=1e-5)


def test_a_training_checkpoint_predicts(run, pictures, tmp_path):
    method = FineTuning(tuned("tiny-clip"))
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    assert list(predict(str(tmp_path / "x.ckpt"), pictures)) == list(predict(str(run), pictures))


@torch.no_grad()
def test_an_open_clip_folder_of_others_is_a_zero_shot_classifier_of_ones_names(pictures):
    names = ["two", "three"]
    classifier = OpenClipClassifier("tiny-clip", None, names)
    predictor = open_model(TINY_CLIP, names)
    images = digit_images(48)
    torch.testing.assert_close(predictor.logits(images), classifier(images))
    with pytest.raises(InputError, match="give --class_names"):
        open_model(TINY_CLIP)


@torch.no_grad()
def test_names_of_ones_own_make_a_tuned_clip_zero_shot(run, tmp_path):
    export(str(run), "open_clip", str(tmp_path / "out"))
    images = digit_images(48)
    tower = tuned("tiny-clip")
    zero_shot = OpenClipClassifier("tiny-clip", None, ["two"], digits.TEMPLATES)
    zero_shot.encoder.load_state_dict(tower.encoder.state_dict())
    predictor = open_model(tmp_path / "out", ["two"])
    torch.testing.assert_close(predictor.logits(images), zero_shot(images))


@torch.no_grad()
def test_a_timm_folder_of_others_predicts(tmp_path):
    import timm
    from timm.models import save_for_hf

    net = timm.create_model("test_vit", num_classes=3).eval()
    save_for_hf(net, str(tmp_path / "hub"), safe_serialization=True)
    with pytest.raises(InputError, match="give --class_names"):
        open_model(tmp_path / "hub")
    predictor = open_model(tmp_path / "hub", ["a", "b", "c"])
    images = digit_images(160)
    torch.testing.assert_close(predictor.logits(images), net((images - 0.5) / 0.5))
    assert predictor.preprocess.crop_pct == 0.95


def test_stored_names_can_be_replaced_but_not_their_number(run, pictures):
    names = [f"digit {k}" for k in range(10)]
    renamed = list(predict(str(run), pictures, class_names=names))
    plain = list(predict(str(run), pictures))
    number = {name: k for k, name in enumerate(digits.CLASS_NAMES)}
    assert [[f"digit {number[name]}" for name, _ in best] for _, best in plain] == [
        [name for name, _ in best] for _, best in renamed
    ]
    with pytest.raises(InputError, match="Expected 10 class names"):
        open_model(run, ["zero"])


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def booby_trapped(program: Path, path: Path, trace: Path) -> Path:
    """A copy of a .pt2 file in which one weight is a pickle that executes code."""
    torch.save(Trap(trace), path.with_suffix(".bin"))
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("weights_config.json"):
                config = json.loads(content)
                first = next(iter(config["config"].values()))
                first["use_pickle"] = True
                trap = name.rsplit("/", 1)[0] + "/" + first["path_name"]
                content = json.dumps(config).encode()
            new.writestr(name, content)
    with zipfile.ZipFile(path) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    names[trap] = path.with_suffix(".bin").read_bytes()
    with zipfile.ZipFile(path, "w") as new:
        for name, content in names.items():
            new.writestr(name, content)
    return path


def test_a_program_is_opened_only_if_trusted(program, pictures, capsys):
    line = fails(capsys, program, *pictures)
    assert "can execute code" in line
    assert "--trust true" in line
    got = predict(str(program), pictures, top=10, trust=True)
    expected = predict(str(program.parents[1] / "run"), pictures, top=10)
    for (_, best), (_, like) in zip(got, expected):
        assert dict(best) == pytest.approx(dict(like), abs=1e-4)


def test_a_program_that_is_a_trap_runs_nothing_without_trust(program, tmp_path, capsys):
    trace = tmp_path / "trace"
    path = booby_trapped(program, tmp_path / "x.pt2", trace)
    fails(capsys, path, "picture.png")
    assert not trace.exists()
    # The trap is a real one: torch itself would walk into it.
    with pytest.raises(InputError):
        open_model(path, trusted=True)
    assert trace.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.bin", "x.pt"])
def test_a_pickle_is_never_opened(tmp_path, capsys, name):
    torch.save(Trap(tmp_path / "trace"), tmp_path / name)
    shutil.copy(TINY_CLIP / "open_clip_config.json", tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    assert "Expected a folder or" in fails(capsys, tmp_path / name, "picture.png")
    assert "Expected one of" in fails(capsys, tmp_path, "picture.png")
    assert not (tmp_path / "trace").exists()


def test_a_pickle_beside_the_weights_is_not_opened(tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    shutil.copytree(TINY_CLIP, folder)
    torch.save(Trap(tmp_path / "trace"), folder / "open_clip_pytorch_model.bin")
    torch.save(Trap(tmp_path / "trace"), folder / "head.safetensors")
    open_model(folder, ["two", "three"])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "open_clip_model.safetensors", "model.onnx", "weights.safetensors"],
)
@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 8])
def test_a_broken_file_is_named(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        assert str(tmp_path / name) in fails(capsys, path, "picture.png")


def test_a_truncated_program_is_named(program, tmp_path):
    (tmp_path / "model.pt2").write_bytes(program.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"model\.pt2"):
        open_model(tmp_path, trusted=True)


def test_weights_without_a_description_are_refused(tmp_path, capsys):
    save_file({"x": torch.zeros(1)}, tmp_path / "mine.safetensors")
    assert "config.json" in fails(capsys, tmp_path / "mine.safetensors", "picture.png")


def test_a_graph_of_others_is_refused(tmp_path, capsys):
    import onnx

    info = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("images", "logits")]
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "x.onnx")
    assert "written by cfmask export" in fails(capsys, tmp_path / "x.onnx", "picture.png")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere", "a.png"], "nowhere does not exist"),
        (["{run}", "nowhere.png"], "Cannot read image nowhere.png"),
        (["{run}", "a.png", "--top=0"], "at least 1 class"),
        (["{run}", "a.png", "--tpo=3"], "tpo"),
        (["{run}"], "images"),
    ],
)
def test_bad_input_is_one_line(run, capsys, args, words):
    assert words in fails(capsys, *(arg.format(run=run) for arg in args))


def test_the_starting_point_of_a_run_predicts_too(run, pictures):
    found = list(predict(str(run / "pretrained.safetensors"), pictures))
    assert found != list(predict(str(run), pictures))
    with torch.no_grad():
        images = torch.stack([start("tiny-clip").preprocess(read_image(f)) for f in pictures])
        best = start("tiny-clip")(images.float() / 255).argmax(1).tolist()
    assert [names[0][0] for _, names in found] == [digits.CLASS_NAMES[k] for k in best]


def cells(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_folders_become_a_csv(run, pictures, tmp_path, capsys, workers):
    """Pictures in folders below, hidden ones left out, a broken one named, no formula."""
    root = tmp_path / "some photos"
    for k, name in enumerate(["b.png", "deep/er/=cmd.png", ".hidden/x.png", "a.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[k % 3], root / name)
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no picture either")
    out = tmp_path / "answers.csv"
    words = [str(run), str(root), f"--out={out}", "--top=2", f"--workers={workers}"]
    assert "broken.jpg" in fails(capsys, *words)
    assert not out.exists()
    predict_images([*words, "--unreadable=name", "--batch_size=2"])
    assert f"{out}: 4 pictures, 1 of which could not be read." in capsys.readouterr().out
    names = ["a.png", "b.png", "broken.jpg", "deep/er/=cmd.png"]
    rows = cells(out)
    assert [row["image"] for row in rows] == [str(root / name) for name in names]
    assert "broken.jpg" in rows.pop(2)["unreadable"]
    expected = predict(str(run), [pictures[0], pictures[0], pictures[1]], top=2)
    for row, (_, best) in zip(rows, expected):
        assert row["unreadable"] == ""
        for place, (name, share) in enumerate(best, 1):
            assert row[f"class {place}"] == name
            assert float(row[f"share {place}"]) == pytest.approx(share, abs=1e-5)


def test_a_name_that_is_a_formula_is_text_in_the_csv(tmp_path):
    found = [Prediction("=HYPERLINK(1)", [("+1", 0.5)])]
    assert write_csv(found, tmp_path / "x.csv", 2) == (1, 0)
    (row,) = cells(tmp_path / "x.csv")
    assert (row["image"], row["class 1"], row["share 1"]) == ("'=HYPERLINK(1)", "'+1", "0.5")
    assert (row["class 2"], row["share 2"]) == ("", "")


def test_an_empty_folder_and_another_ending_are_refused(run, tmp_path, capsys):
    assert "has none" in fails(capsys, run, tmp_path)
    assert ".csv file" in fails(capsys, run, tmp_path, "--out=x.txt")


@torch.no_grad()
def test_descriptors_of_the_likeliest_class_have_their_cosines(pictures, tmp_path, capsys):
    words = {name: ["faint", "an eye", "", "a line"][: k + 1] for k, name in enumerate("abcd")}
    (tmp_path / "own words.json").write_text(json.dumps(words))
    save_classifier(OpenClipClassifier("tiny-clip", None, list("abcd")), tmp_path / "w.safetensors")
    net, (clip, _) = load_classifier(tmp_path / "w.safetensors"), load_clip("tiny-clip", None)
    read, asked = tokenizer_of("tiny-clip", clip), str(tmp_path / "own words.json")
    options = {"descriptions": asked, "normalise": False, "top": 1}
    for one in command.predict(str(tmp_path / "w.safetensors"), pictures, **options):
        seen = net.features(net.preprocess(read_image(one.file))[None] / 255)[0]
        found = {
            name: [
                float(
                    F.cosine_similarity(seen, clip.encode_text(read([sentence(name, text)]))[0], 0)
                )
                for text in texts
            ]
            for name, texts in words.items()
        }
        best = max(found, key=lambda name: sum(found[name]) / len(found[name]))
        assert [name for name, _ in one.classes] == [best]
        expected = sorted(zip(found[best], words[best]), reverse=True)
        assert [text for text, _ in one.descriptors] == [text for _, text in expected]
        assert [c for _, c in one.descriptors] == pytest.approx([c for c, _ in expected], abs=1e-5)
    predict_images([str(tmp_path / "w.safetensors"), pictures[0], "--descriptions", asked])
    assert "cosine" in capsys.readouterr().out
    write_csv([Prediction("x", [("a", 0.5)], "", [("=1", 0.25)])], tmp_path / "x.csv", 1, True)
    assert (tmp_path / "x.csv").read_text().splitlines()[1] == "x,a,0.5,,'=1 0.250"


def test_descriptions_of_a_model_without_text_or_words_are_refused(run, pictures, tmp_path, capsys):
    assert "not; give a JSON" in fails(capsys, run, pictures[0], "--descriptions", "own")
    net = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=48)
    save_classifier(net, tmp_path / "net.safetensors")
    told = fails(capsys, tmp_path / "net.safetensors", pictures[0], "--descriptions", "digits")
    assert "text tower" in told
