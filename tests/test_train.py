from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from support.training import DEMO, FAST, FOLDER, fails, photos

from cfmask import MaskedDistillation, ShiftReport, load_classifier
from cfmask.commands.eval_models import evaluate_run
from cfmask.commands.train_model import train


def run_demo(folder: Path, *options: str) -> ShiftReport | None:
    return train(["--config", DEMO, f"--run={folder}", *FAST, *options])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    assert run_demo(folder) == ShiftReport.load(folder / "report.json")
    return folder


def test_the_run_folder_holds_all_that_is_promised(demo):
    config = yaml.safe_load((demo / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["lr"] == 3e-4
    for picture in ("gallery.png", "trade_off.png"):
        assert min(Image.open(demo / picture).size) > 300
    rows = list(csv.DictReader((demo / "csv" / "metrics.csv").open()))
    assert [float(r["val/accuracy"]) for r in rows if r["val/accuracy"]]
    # A short run logs every step: three an epoch.
    assert len([float(r["loss/total"]) for r in rows if r["loss/total"]]) == 6
    assert list((demo / "tensorboard").glob("events.out.tfevents*"))
    torch.load(demo / "checkpoints" / "last.ckpt", weights_only=True)


def test_tensorboard_opens_the_metrics(demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(demo / "tensorboard"))
    events.Reload()
    values = [e.value for e in events.Scalars("val/accuracy")]
    rows = list(csv.DictReader((demo / "csv" / "metrics.csv").open()))
    expected = [float(r["val/accuracy"]) for r in rows if r["val/accuracy"]]
    assert values == pytest.approx(expected)


def test_the_report_counts_every_image_of_every_set_for_every_model(demo):
    report = json.loads((demo / "report.json").read_text())
    names = ["id", "v2", "counter", "sketch", "rendition", "corruption"]
    sets = [f"digits/{name}" for name in names]
    rows = [row for row in report["rows"] if row["metric"] == "accuracy"]
    single = [row for row in rows if row["total"]]
    assert [(r["model"], r["shift"]) for r in single] == [
        (m, s) for s in sets for m in ("zero-shot", "tuned", "WiSE-FT 0.5")
    ]
    assert all(r["total"] == 20 and r["value"] == r["correct"] / 20 for r in single)
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
    means = {r["shift"] for r in rows} - set(sets)
    assert means == {"O3", "mean of shifts", "harmonic mean"}
    assert set(report["protocol"]["sets"]) == set(sets)


def test_eval_gives_the_same_report_from_the_folder_alone(demo, capsys):
    before = ShiftReport.load(demo / "report.json")
    (demo / "report.json").unlink()
    evaluate_run([str(demo)])
    after = ShiftReport.load(demo / "report.json")
    assert replace(after, run={}) == replace(before, run={})
    table = capsys.readouterr().out
    for row in after.of("accuracy"):
        assert f"{100 * row.value:.1f}" in table
    assert "WiSE-FT 0.5" in table


def test_eval_takes_other_sets_and_alphas(demo, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(demo, copy)
    evaluate_run([str(copy), "--shifts", '["digits/id","digits/sketch"]', "--wise=0,0.5,1"])
    report = ShiftReport.load(copy / "report.json")
    assert {row.shift for row in report.of("nll")} == {"digits/id", "digits/sketch"}
    (curve,) = report.curves
    assert (curve.alphas, curve.models) == ([0, 0.5, 1], ["zero-shot", "WiSE-FT 0.5", "tuned"])


def test_the_weights_are_those_of_the_best_epoch(demo):
    best = load_classifier(demo / "checkpoints" / "best.ckpt")
    tuned = load_classifier(demo)
    for (name, a), b in zip(best.state_dict().items(), tuned.state_dict().values()):
        assert torch.equal(a, b), name
    checkpoint = torch.load(demo / "checkpoints" / "best.ckpt", weights_only=True)
    rows = list(csv.DictReader((demo / "csv" / "metrics.csv").open()))
    accuracies = [(int(r["epoch"]), float(r["val/accuracy"])) for r in rows if r["val/accuracy"]]
    assert checkpoint["epoch"] == max(accuracies, key=lambda pair: pair[1])[0]


def test_the_starting_point_is_kept_as_it_was(demo, tiny_clip):
    start = load_classifier(demo, "pretrained.safetensors")
    assert torch.equal(start.encoder.proj, tiny_clip.encoder.proj)
    assert not torch.equal(load_classifier(demo).encoder.proj, tiny_clip.encoder.proj)


def test_the_saved_config_gives_the_same_run(demo, tmp_path):
    few = "--evaluation.shifts=[digits/id]"
    train(["--config", str(demo / "config.yaml"), f"--run={tmp_path / 'again'}", few])
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (
        demo / "weights.safetensors"
    ).read_bytes()


def untrained(monkeypatch, error: type[BaseException]) -> None:
    """Have the first step of any training fail."""

    def step(self, batch, index):
        raise error("a step")

    monkeypatch.setattr("cfmask.methods.base.Method.training_step", step)


def whole(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.name not in (".lock", ".holder")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_finished_runs_command_reports_again_from_what_is_there(demo, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(demo, tmp_path / "copy"))
    untrained(monkeypatch, AssertionError)
    report = ShiftReport.load(demo / "report.json")
    before = whole(copy)
    for name in ("report.json", "report.html"):
        (copy / name).unlink()
    train(["--config", str(copy / "config.yaml"), f"--run={copy}"])
    again = ShiftReport.load(copy / "report.json")
    assert again.rows == report.rows
    assert set(again.run["reused"]) == set(again.protocol["sets"])
    changed = {name for name, content in whole(copy).items() if content != before[name]}
    assert changed <= {"config.yaml", "report.json", "report.html"}


def test_other_settings_of_the_evaluation_are_used_and_kept(demo, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(demo, tmp_path / "copy"))
    untrained(monkeypatch, AssertionError)
    run_demo(copy, "--resume", "--evaluation.images=10", "--evaluation.shifts=[digits/id]")
    assert {row.total for row in ShiftReport.load(copy / "report.json").of("accuracy")} == {10}
    assert yaml.safe_load((copy / "config.yaml").read_text())["evaluation"]["images"] == 10


def test_a_replacement_that_fails_at_its_first_step_leaves_the_finished_run(
    demo, tmp_path, monkeypatch
):
    copy = Path(shutil.copytree(demo, tmp_path / "copy"))
    (copy / "notes.txt").write_text("a note")
    before = whole(copy)
    untrained(monkeypatch, RuntimeError)
    with pytest.raises(RuntimeError, match="a step"):
        run_demo(copy, "--overwrite", "--model.lr=1e-3")
    assert whole(copy) == before


@pytest.mark.slow
def test_a_replacement_leaves_the_users_own_files_and_says_so(demo, tmp_path, capsys):
    copy = Path(shutil.copytree(demo, tmp_path / "copy"))
    (copy / "notes.txt").write_text("a note")
    run_demo(copy, "--overwrite", "--model.lr=1e-3", "--trainer.max_epochs=1")
    assert f"{copy} keeps what no run wrote: notes.txt" in capsys.readouterr().out
    assert (copy / "notes.txt").read_text() == "a note"
    assert not list(copy.rglob("*.replaced"))
    assert not (copy / "gallery" / "epoch_1.png").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model=FineTunning", ["FineTunning", "FineTuning"]),
        ("--model.classifier.model=tiny-clop", ["tiny-clop", "tiny-clip"]),
        ("--model.learning_rate=1", ["learning_rate"]),
        ("--trainer.max_epoch=1", ["max_epoch"]),
        ("--evaluation.shifts=[digit]", ["'digit'", "digits"]),
        ("--evaluation.shifts=[digits/sketsch]", ["sketsch", "digits/sketch"]),
        ("--model.counterfactual.mask.threshold=1.5", ["threshold in [0, 1]", "1.5"]),
        ("--data.batch_size=1", ["at least 2 images"]),
        ("--model.lr=fast", ["lr", "fast"]),
        ("--model.weight_decay=-1", ["weight decay of at least 0", "-1"]),
        ("--model.betas=[0.9,1.5]", ["betas in [0, 1)", "1.5"]),
        ("--evaluation.wise=2", ["alphas in [0, 1]", "'2'"]),
        ("--evaluation.fit=nope", ["a fit among builtin", "nope"]),
        ("--evaluation.shifts=[]", ["one shift set", "none"]),
        ("--evaluation.images=0", ["image of each built-in set", "0"]),
        ("--evaluation.batch_size=0", ["batch_size", "0"]),
        ("--evaluation.workers=-1", ["workers", "-1"]),
        ("--evaluation.pictures=-1", ["pictures", "-1"]),
        ("--evaluation.precision=int8", ["precision", "int8"]),
        ("--evaluation.decoder=jpeg", ["decoder", "jpeg"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(option, words, tmp_path, capsys):
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *FAST, option)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_predictions_that_could_not_be_written_are_refused_before_training(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = fails(
        capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *FAST, "--evaluation.predictions"
    )
    assert "pyarrow" in line
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_in_a_file_is_named(tmp_path, capsys):
    config = yaml.safe_load(Path(DEMO).read_text())
    options = config["model"]["init_args"]
    options["distil_weight"] = options.pop("distill_weight")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    line = fails(capsys, "--config", str(tmp_path / "bad.yaml"), f"--run={tmp_path / 'run'}")
    assert "distil_weight" in line
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_not_overwritten(demo, capsys):
    before = (demo / "weights.safetensors").read_bytes()
    line = fails(capsys, "--config", DEMO, f"--run={demo}", *FAST, "--model.lr=1e-3")
    assert "another config" in line
    assert (demo / "weights.safetensors").read_bytes() == before


def test_a_folder_of_other_files_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years")
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path}", *FAST)
    assert "other files" in line
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_a_loss_that_is_not_finite_ends_the_command(tmp_path, capsys):
    line = fails(
        capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *FAST, "--model.lr=1e30",
        "--trainer.gradient_clip_val=0",
    )  # fmt: skip
    assert "not finite at step" in line
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_later_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    losses = MaskedDistillation.losses

    def diverging(self, images, labels):
        factor = float("nan") if self.current_epoch == 1 else 1.0
        return {name: factor * value for name, value in losses(self, images, labels).items()}

    monkeypatch.setattr(MaskedDistillation, "losses", diverging)
    line = fails(capsys, "--config", DEMO, f"--run={tmp_path / 'run'}", *FAST)
    assert "not finite at step 3" in line
    load_classifier(tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_eval_of_what_is_no_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate_run([str(tmp_path)])
    assert end.value.code == 2
    assert "Expected a run folder" in capsys.readouterr().err


def test_ones_own_folder_trains_and_evaluates(tmp_path):
    root = photos(tmp_path / "photos")
    run = tmp_path / "run"
    names = '--data.class_names={"red_plum":"dark plum"}'
    train([*FOLDER, f"--run={run}", f"--data.root={root}", f"--evaluation.data_root={root}", names])
    report = ShiftReport.load(run / "report.json")
    assert report.reference == "folders/test"
    assert {row.shift for row in report.of("nll")} == {"folders/test", "folders/sketches"}
    assert all(row.total == 12 for row in report.of("accuracy"))
    assert load_classifier(run).class_names == ("lemon", "lime", "dark plum")


def test_what_is_wrong_with_a_folder_is_said_before_training(tmp_path, capsys):
    root = photos(tmp_path / "photos")
    args = [*FOLDER, f"--run={tmp_path / 'run'}", f"--data.root={root}"]
    args.append(f"--evaluation.data_root={root}")

    (root / "sketches" / "lime").rename(root / "sketches" / "olive")
    assert "olive" in fails(capsys, *args)
    (root / "sketches" / "olive").rename(root / "sketches" / "lime")

    # There, the next listing would take the run's pictures for a class.
    assert f"outside of {root}" in fails(capsys, *args, f"--run={root / 'runs' / 'x'}")
    plain = [*FOLDER, f"--data.root={root / 'train'}", "--evaluation.shifts=[digits/id]"]
    assert "outside of" in fails(capsys, *plain, f"--run={root / 'train' / 'x'}")

    (root / "train" / "empty").mkdir()
    assert "empty" in fails(capsys, *args)
    (root / "train" / "empty").rmdir()

    assert "nowhere" in fails(capsys, *args, f"--data.root={root / 'nowhere'}")
    assert not (tmp_path / "run").exists()

    broken = root / "train" / "lemon" / "6.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    for workers in (0, 1):
        line = fails(capsys, *args, "--data.val_images=3", f"--data.workers={workers}")
        assert line.startswith(f"error: Cannot read image {broken}")
        assert not (tmp_path / "run").exists()
