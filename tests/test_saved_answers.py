"""Reports from saved logits or predictions alone: the figures of the model that gave them."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.any_models import NAMES, TRANSFORM, by_hand, counts, net, sets_of
from support.evaluation import CLASSES, random_images

from cfmask import InputError, Metric, SavedAnswers, ShiftReport, evaluate
from cfmask.commands.main import main
from cfmask.shift import Shift

HEADS = tuple(str(k) for k in range(CLASSES))
SETS = ("folders/id", "folders/sketch")


def model(images: torch.Tensor) -> torch.Tensor:
    """Logits (B, 5) of some pixels."""
    return images[:, 0, 0, :1] * 3 - images[:, 1, 1] @ torch.ones(4, 5).triu()


def three_sets() -> list[Shift]:
    """A reference, a set of three of the classes, and one whose labels are several classes."""
    whole, part, many = random_images(40, 1), random_images(30, 2), random_images(20, 3)
    part.labels = torch.tensor([0, 2, 3])[part.labels % 3]
    many.labels = 100 + many.labels // 3
    rule = {100: (0, 2), 101: (3, 4)}
    return [
        Shift("id", lambda look: whole, True),
        Shift("part", lambda look: part, classes=(0, 2, 3)),
        Shift("many", lambda look: many, accepts=rule, groups=(0, 1) * 10, group_names=("a", "b")),
    ]


def bytes_as_floats(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def logits_of(shift: Shift) -> np.ndarray:
    return model(shift.load(None).images.float() / 255).numpy()


def figures(report: ShiftReport, name: str) -> dict[tuple[str, str], float]:
    return {(row.shift, row.metric): row.value for row in report.rows if row.model == name}


def test_logits_give_every_figure_of_their_model(tmp_path):
    shifts = three_sets()
    file = tmp_path / "logits of a model.npz"
    np.savez(file, **{shift.name: logits_of(shift) for shift in shifts})
    margin = Metric("Margin", lambda judged: judged.answers.logits.std(), needs_logits=True)
    models = {"live": (model, bytes_as_floats), "saved": SavedAnswers(file, HEADS)}
    report = evaluate(models, shifts, metrics={"margin": margin}, class_names=HEADS)
    live, saved = figures(report, "live"), figures(report, "saved")
    assert saved == pytest.approx(live, abs=1e-6)
    assert {("part", "accuracy_unrestricted"), ("many", "worst_group"), ("id", "margin")} <= set(
        live
    )
    assert report.protocol["models"]["saved"] == {"encoder": "logits in logits of a model.npz"}
    assert all(d.only_first == d.only_second == 0 for d in report.differences)


def test_predictions_give_what_needs_no_logits(tmp_path):
    shifts = three_sets()
    file = tmp_path / "answers.parquet"
    rows: dict[str, list] = {"path": [], "set": [], "prediction": []}
    expected = {}
    for shift in shifts:
        among = list(shift.classes or range(CLASSES))
        guesses = np.array(among)[logits_of(shift)[:, among].argmax(1)]
        labels = shift.load(None).labels.tolist()
        right = [
            int(g) in (shift.accepts or {k: (k,) for k in HEADS_OF}).get(k, ())
            for g, k in zip(guesses, labels)
        ]
        expected[shift.name] = sum(right), len(right)
        # In any order.
        for k in np.random.default_rng(0).permutation(len(labels)):
            rows["path"].append(str(k))
            rows["set"].append(shift.name)
            rows["prediction"].append(HEADS[guesses[k]])
    pq.write_table(pa.table(rows), file)
    models = {"live": (model, bytes_as_floats), "saved": SavedAnswers(file, HEADS)}
    report = evaluate(models, shifts, class_names=HEADS)
    assert counts(report, "saved") == expected == counts(report, "live")
    live, saved = figures(report, "live"), figures(report, "saved")
    assert saved == {key: value for key, value in live.items() if key in saved}
    assert {metric for _, metric in live} - {metric for _, metric in saved} == {
        "accuracy_unrestricted",
        "auroc_max_logit",
        "ece",
        "nll",
        "selective_accuracy",
    }
    assert all(d.only_first == d.only_second == 0 for d in report.differences)


HEADS_OF = range(CLASSES)


def test_what_an_evaluation_writes_as_predictions_can_be_read(tmp_path, photos):
    shifts = three_sets()
    evaluate({"m": (model, bytes_as_floats)}, shifts, predictions=tmp_path, class_names=HEADS)
    for shift in shifts:
        (file,) = tmp_path.glob(f"{shift.name}-*.parquet")
        models = {"live": (model, bytes_as_floats), "saved": SavedAnswers(file, HEADS)}
        report = evaluate(models, [shift], class_names=HEADS)
        live, saved = figures(report, "live"), figures(report, "saved")
        # All classes of the head are not in the file of a set of some.
        left = {("part", "accuracy_unrestricted")} & set(live)
        assert saved == pytest.approx({k: v for k, v in live.items() if k not in left}, abs=1e-6)


def table(photos: Path, root: Path | None = None) -> list[tuple[str, str]]:
    """Path, relative to a folder or whole, and predicted name of every picture."""
    module = net().eval()
    from PIL import Image

    rows = []
    for path in sorted(photos.rglob("*.png")):
        logits = module(TRANSFORM(Image.open(path).convert("RGB"))[None])[0]
        rows.append((str(path.relative_to(root) if root else path), NAMES[int(logits.argmax())]))
    return rows


def write(path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_the_command_makes_a_report_of_files_alone(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = by_hand(net(), photos)
    np.savez("logits.npz", **{name: saved_logits(photos / name.split("/")[1]) for name in SETS})
    write(tmp_path / "answers.csv", table(photos, photos), ("path", "prediction"))
    (tmp_path / "photos").symlink_to(photos)
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^cfmask (eval logits\.npz .*)$", page, re.M)
    main([*shlex.split(line), "--out", "report"])
    assert "Everything of this run" in capsys.readouterr().out
    report = ShiftReport.load("report/report.json")
    assert counts(report, "logits.npz") == counts(report, "answers.csv") == expected
    assert report.value("logits.npz", SETS[0], "nll") > 0
    assert report.protocol["precision"].startswith("not known")
    page = Path("report/report.html").read_text(encoding="utf-8")
    assert "of logits.npz, answers.csv: pictures on which they differ" in page
    assert report.details["answers.csv"][SETS[0]]["classes"]["names"] == list(NAMES)
    again = ShiftReport.load("report/report.json")
    assert json.dumps(again.details) == json.dumps(report.details)


def saved_logits(folder: Path) -> np.ndarray:
    """Logits (N, 3) in the order of class folders and names."""
    from PIL import Image

    pictures = [Image.open(p).convert("RGB") for p in sorted(folder.rglob("*.png"))]
    with torch.no_grad():
        return net().eval()(torch.stack([TRANSFORM(p) for p in pictures])).numpy()


def test_paths_may_be_whole_or_begin_at_any_folder(photos, tmp_path):
    expected = by_hand(net(), photos)
    for root in (None, photos, photos.parent):
        file = write(tmp_path / "a.csv", table(photos, root), ("path", "prediction"))
        report = evaluate({"a": SavedAnswers(file, NAMES)}, sets_of(photos))
        assert counts(report, "a") == expected
    numbers = [(path, str(NAMES.index(name))) for path, name in table(photos)]
    file = write(tmp_path / "a.csv", numbers, ("path", "prediction"))
    assert counts(evaluate({"a": SavedAnswers(file, NAMES)}, sets_of(photos)), "a") == expected


def changed(rows, k, path=None, name=None):
    rows[k] = (path or rows[k][0], name or rows[k][1])
    return rows


TABLES = {
    "a line lacks": (
        lambda rows: rows[1:],
        r"each of the 7 images of folders/id .* but 1 have none",
    ),
    "an unknown path": (lambda rows: [*rows, ("x/y.png", "oak")], "but got x/y.png"),
    "another folder": (lambda rows: [*rows, ("train/ash/0.png", "oak")], "got train/ash/0.png"),
    "two lines": (lambda rows: [*rows, rows[0]], "but got two for id/ash/0.png"),
    "an end of two": (
        lambda rows: [(path.partition("/")[2], name) for path, name in rows if path[0] == "i"],
        "tell the images apart, but ash/0.png is the end of 2",
    ),
    "no class": (lambda rows: changed(rows, 2, None, "elm"), "but got 'elm'"),
    "a number above": (lambda rows: changed(rows, 2, None, "3"), "numbers below 3 in .*got '3'"),
    "no lines": (lambda rows: [], "a line for each image in"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_do_not_fit_are_refused_in_one_line(photos, tmp_path, kind):
    change, line = TABLES[kind]
    file = write(tmp_path / "a.csv", change(table(photos, photos)), ("path", "prediction"))
    with pytest.raises(InputError, match=line) as caught:
        evaluate({"a": SavedAnswers(file, NAMES)}, sets_of(photos))
    assert "\n" not in str(caught.value)
    assert "a.csv" in str(caught.value)


def test_a_prediction_outside_of_the_competing_classes_is_refused(tmp_path):
    shift = three_sets()[1]
    rows = [(str(k), "1") for k in range(30)]
    file = write(tmp_path / "a.csv", rows, ("path", "prediction"))
    with pytest.raises(
        InputError, match="among the 3 classes that compete on part, but got class 1"
    ):
        evaluate({"a": SavedAnswers(file, HEADS)}, [shift])


ARRAYS = {
    "images": (
        {"id": np.zeros((39, 5))},
        r"logits \(40, 5\), images by classes, of id .*\(39, 5\)",
    ),
    "classes": ({"id": np.zeros((40, 6))}, r"\(40, 5\), .* but got \(40, 6\)"),
    "one number": ({"id": np.zeros(40)}, r"but got \(40,\)"),
    "no number": ({"id": np.full((40, 5), np.nan)}, "finite logits of id"),
    "texts": ({"id": np.full((40, 5), "x")}, "numbers in id of"),
    "objects": ({"id": np.array([{}], dtype=object)}, "Cannot read arrays of numbers"),
    "other sets": ({"a": np.zeros((40, 5)), "b": np.zeros((40, 5))}, "array id in .* has a, b"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_do_not_fit_are_refused_in_one_line(tmp_path, kind):
    arrays, line = ARRAYS[kind]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=line):
        evaluate({"a": SavedAnswers(tmp_path / "a.npz", HEADS)}, three_sets()[:1])


def test_files_of_another_kind_are_refused_in_one_line(tmp_path):
    for name, content, line in (
        ("a.npz", b"PK no zip", "Cannot read arrays"),
        ("a.parquet", b"no table", "Cannot read the table"),
        ("a.csv", b"path,class\nx,1\n", "columns path and prediction in .* but got path, class"),
        ("a.csv", b"path,prediction\nx\n", "as many columns in line 2"),
        ("a.txt", b"", r"\.npz, \.parquet, \.csv"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=line) as caught:
            SavedAnswers(tmp_path / name, HEADS)
        assert "\n" not in str(caught.value)
    np.savez_compressed(tmp_path / "z.npz", x=np.arange(500.0))
    whole = (tmp_path / "z.npz").read_bytes()
    (tmp_path / "z.npz").write_bytes(whole[:90] + bytes(40) + whole[130:])
    odd = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(pa.table({"path": odd, "prediction": ["1"]}), tmp_path / "odd.parquet")
    for name, line in (("z.npz", "Cannot read arrays"), ("odd.parquet", "texts in UTF-8")):
        with pytest.raises(InputError, match=line):
            SavedAnswers(tmp_path / name, HEADS)
    with pytest.raises(InputError, match="which is not there"):
        SavedAnswers(tmp_path / "none.npz", HEADS)
    for column in ([[1.0], [1.0, 2.0]], ["a", "b"], [[1.0, 2.0], None]):
        pq.write_table(pa.table({"path": ["0", "1"], "logits": column}), tmp_path / "b.parquet")
        with pytest.raises(InputError, match=r"b\.parquet"):
            SavedAnswers(tmp_path / "b.parquet", HEADS)
