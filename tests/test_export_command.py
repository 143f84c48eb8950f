from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.exported import plant_run, start, tuned

from cfmask import InputError, TimmClassifier, interpolate, load_classifier, save_classifier
from cfmask.checkpoint import PRETRAINED, WEIGHTS, average
from cfmask.commands.export_model import export_run
from cfmask.exporting.writing import EXPORTERS, export, push


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three runs from one starting point, the first with a report, and one of CLIP."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second", "third")):
        plant_run(root / name, "test_vit", seed, images=4 if seed == 0 else 0)
    plant_run(root / "clip", "tiny-clip")
    return root


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that the command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as end:
        export_run([str(arg) for arg in args])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_classifier(folder).state_dict()


def test_the_command_says_what_it_wrote(runs, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    export_run([str(runs / "first"), "--to", "safetensors", "--out", str(out)])
    text = capsys.readouterr().out
    assert text.startswith(f"{out}/: tuned. Loaded back")
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "provenance.json",
        WEIGHTS,
    ]


def test_interpolated_weights_are_exported(runs, tmp_path):
    export(str(runs / "first"), "safetensors", str(tmp_path / "out"), alpha=0.25)
    got = weights(tmp_path / "out")
    old, new = start("test_vit").state_dict(), tuned("test_vit").state_dict()
    for name, value in got.items():
        torch.testing.assert_close(value, 0.75 * old[name] + 0.25 * new[name])
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["weights"] == "WiSE-FT 0.25"
    assert facts["report"] is None
    assert "not been evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_interpolated_weights_have_the_figures_of_their_row(runs, tmp_path):
    export(str(runs / "first"), "timm", str(tmp_path / "out"), alpha=0.5)
    report = json.loads((tmp_path / "out" / "provenance.json").read_text())["report"]
    whole = json.loads((runs / "first" / "report.json").read_text())
    assert report["rows"] == [r for r in whole["rows"] if r["model"] != "tuned"]
    assert {r["model"] for r in report["rows"]} == {"pretrained", "WiSE-FT 0.5"}


def test_the_mean_of_runs_is_exported(runs, tmp_path):
    others = ["--average", str(runs / "second"), str(runs / "third")]
    out = str(tmp_path / "out")
    export_run([str(runs / "first"), "--to=safetensors", f"--out={out}", *others])
    states = [tuned("test_vit", seed).state_dict() for seed in range(3)]
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, sum(state[name] for state in states) / 3)
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["weights"] == "mean of 3 runs"
    assert [run["name"] for run in facts["runs"]] == ["first", "second", "third"]
    assert facts["report"] is None


def test_the_mean_of_runs_is_interpolated(runs, tmp_path):
    out, second = str(tmp_path / "out"), [str(runs / "second")]
    assert export(str(runs / "first"), "safetensors", out, alpha=0.5, average=second).weights == (
        "mean of 2 runs, WiSE-FT 0.5"
    )
    mean = average([tuned("test_vit", seed) for seed in range(2)])
    expected = interpolate(start("test_vit"), mean, 0.5).state_dict()
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name])


def test_the_mean_leaves_its_parts_and_whole_numbers_as_they_are():
    one, two = tuned("test_resnet"), tuned("test_resnet", 1)
    two.encoder.bn1.num_batches_tracked.fill_(7)
    before = {k: v.clone() for k, v in one.state_dict().items()}
    mean = average([two, one])
    assert mean.encoder.bn1.num_batches_tracked == 7
    assert all(torch.equal(v, before[k]) for k, v in one.state_dict().items())
    with pytest.raises(InputError, match="at least one"):
        average([])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["first", "--to=onx"], ["Unknown format 'onx'", "onnx"]),
        (["clip", "--to=timm"], ["tiny-clip", "safetensors, open_clip, onnx, torch_export"]),
        (["first", "--to=open_clip"], ["test_vit", "safetensors, timm, onnx, torch_export"]),
        (["first", "--to=timm", "--alpha=1.5"], ["alpha in [0, 1]"]),
        (["first", "--to=timm", "--alhpa=1"], ["alhpa", "alpha"]),
        (["nowhere", "--to=timm"], ["nowhere", "does not exist"]),
        (["first", "--to=timm", "--average", "{runs}/clip"], ["one architecture"]),
        (["first", "--to=timm", "--average", "{runs}/./first/"], ["each run once"]),
        (["first", "--to=timm", "--out={runs}/first/config.yaml/x"], ["config.yaml is a file"]),
        (["first/weights.safetensors", "--to=timm", "--alpha=0.5"], ["Expected a run folder"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(runs, tmp_path, capsys, args, words):
    run, *options = [arg.format(runs=runs) for arg in args]
    line = fails(capsys, runs / run, f"--out={tmp_path / 'out'}", *options)
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_never_replaced(runs, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years")
    args = [runs / "first", "--to=safetensors", f"--out={tmp_path}", "--overwrite=true"]
    assert "other files" in fails(capsys, *args)
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_an_older_export_is_replaced_only_if_asked(runs, tmp_path, capsys):
    out = tmp_path / "out"
    args = [str(runs / "first"), "--to=safetensors", f"--out={out}"]
    export_run(args)
    (out / "model.onnx").touch()
    assert "--overwrite true" in fails(capsys, *args)
    assert (out / "model.onnx").exists()
    export_run([*args, "--overwrite=true"])
    assert not (out / "model.onnx").exists()
    assert weights(out)


def test_what_is_not_of_an_export_is_never_deleted(runs, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("out.partial", "out.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years")
    args = [str(runs / "first"), "--to=safetensors", f"--out={out}", "--overwrite=true"]
    export_run(args)
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in fails(capsys, *args)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.read_text() for path in tmp_path.glob("*/thesis.txt")] == ["years"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.part", "out.partial"]


def test_a_file_that_does_not_agree_is_not_left_behind(runs, tmp_path, capsys, monkeypatch):
    def careless(classifier, facts, folder):
        with torch.no_grad():
            classifier = load_classifier(runs / "first")
            classifier.head.bias[0] += 0.01
        save_classifier(classifier, folder / WEIGHTS)
        return None

    monkeypatch.setitem(EXPORTERS, "safetensors", careless)
    line = fails(capsys, runs / "first", "--to=safetensors", f"--out={tmp_path / 'out'}")
    assert "differ by 0.01" in line
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_named(runs, tmp_path, capsys, monkeypatch):
    def fails_to_trace(classifier, facts, folder):
        (folder / "half").touch()
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setitem(EXPORTERS, "onnx", fails_to_trace)
    line = fails(capsys, runs / "first", "--to=onnx", f"--out={tmp_path / 'out'}")
    assert "Cannot write test_vit as onnx: no such operator" in line
    assert not list(tmp_path.iterdir())


def test_a_timm_model_with_two_heads_is_refused(tmp_path, capsys):
    classifier = TimmClassifier("deit_tiny_distilled_patch16_224", False, ["a"], image_size=32)
    save_classifier(classifier, tmp_path / "x.safetensors")
    line = fails(capsys, tmp_path / "x.safetensors", "--to=timm", f"--out={tmp_path / 'out'}")
    assert "deit_tiny_distilled_patch16_224 has more to it" in line


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_library_that_is_not_installed_is_named(runs, tmp_path, capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    line = fails(capsys, runs / "first", "--to=onnx", f"--out={tmp_path / 'out'}")
    assert library in line
    assert "cfmask[export]" in line


def test_weights_that_cannot_be_downloaded_are_named(runs, tmp_path, capsys, monkeypatch):
    import open_clip

    def offline(*args, **kwargs):
        raise OSError("no network")

    run = tmp_path / "run"
    run.mkdir()
    classifier = tuned("tiny-clip")
    options = {**classifier.spec.options, "pretrained": "openai"}
    classifier.spec = replace(classifier.spec, model="ViT-B-32-quickgelu", options=options)
    save_classifier(classifier, run / WEIGHTS)
    monkeypatch.setattr(open_clip, "create_model", offline)
    line = fails(capsys, run, "--to=open_clip", f"--out={tmp_path / 'out'}")
    assert "ViT-B-32-quickgelu with openai: no network" in line
    del options["pretrained"]
    classifier.spec = replace(classifier.spec, options=options)
    save_classifier(classifier, run / WEIGHTS)
    line = fails(capsys, run, "--to=open_clip", f"--out={tmp_path / 'out'}")
    assert "older version" in line


def test_another_image_tower_than_the_starting_points_is_refused(tmp_path, capsys):
    classifier = tuned("tiny-clip")
    classifier.spec.options["config"]["vision_cfg"] |= {"layers": 3}
    del classifier.encoder.transformer.resblocks[3]
    save_classifier(classifier, tmp_path / "x.safetensors")
    line = fails(capsys, tmp_path / "x.safetensors", "--to=open_clip", f"--out={tmp_path / 'o'}")
    assert "image tower of tiny-clip" in line


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`: keeps what it is given in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self.private[repo_id] = private
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
        if repo_id not in self.private:
            raise OSError("404: no such repository")
        shutil.copytree(folder_path, self.root / repo_id)


def test_an_export_is_pushed_whole_to_a_private_repository(runs, tmp_path):
    export(str(runs / "first"), "timm", str(tmp_path / "out"))
    hub = FakeHub(tmp_path / "hub")
    assert push(tmp_path / "out", "me/mine", hub) == "https://hub/me/mine"
    assert hub.private == {"me/mine": True}
    pushed = tmp_path / "hub" / "me" / "mine"
    assert {p.name: p.read_bytes() for p in pushed.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()
    }


def test_the_command_pushes_after_it_wrote(runs, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    out = f"--out={tmp_path / 'out'}"
    export_run([str(runs / "first"), "--to=safetensors", out, "--push=me/mine"])
    assert "Pushed to https://hub/me/mine" in capsys.readouterr().out
    monkeypatch.setattr(FakeHub, "create_repo", lambda *args, **kwargs: "")
    hub.private.clear()
    args = [runs / "first", "--to=safetensors", out, "--push=me/other", "--overwrite=true"]
    assert "me/other: 404: no such repository" in fails(capsys, *args)


def test_the_starting_point_is_a_model_to_export_too(runs, tmp_path):
    export(str(runs / "first" / PRETRAINED), "timm", str(tmp_path / "out"))
    assert (tmp_path / "out" / "config.json").is_file()


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit) as end:
        export_run(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"`{form}`" in text for form in EXPORTERS)
    assert "--push" in text
    assert "Args:" not in text


@pytest.mark.parametrize(
    "summary",
    ["[]", "{", '{"method": 1}', '{"method": "x", "train_images": "many"}', "{}", "[" * 9999],
)
def test_a_damaged_summary_is_one_line(runs, tmp_path, capsys, summary):
    run = tmp_path / "run"
    shutil.copytree(runs / "second", run)
    (run / "summary.json").write_text(summary)
    line = fails(capsys, run, "--to=safetensors", f"--out={tmp_path / 'out'}")
    assert str(run / "summary.json") in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
