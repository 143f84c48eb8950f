"""Answers and predictions on the disk: kept, found again, and believed only if they are right."""

from __future__ import annotations

import copy
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluation import (
    CLASSES,
    FORK,
    SIZES,
    ReadsTheLabel,
    Sees,
    in_processes,
    linear,
    models,
    odd_sets,
    painted,
    random_images,
    without_run,
)
from support.imagenet_trees import Sees as SeesTheColour
from support.imagenet_trees import find

from cfmask import InputError, ShiftReport, evaluate, interpolate
from cfmask.inference.answer_store import model_key
from cfmask.inference.inference import Inference
from cfmask.inference.settings import Settings
from cfmask.inference.wise import Blend, WeightLine
from cfmask.shift import Shift


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    store = tmp_path / "answers"
    sets = odd_sets()
    asked = []

    def load(shift: Shift, kill: bool):
        def inner(look):
            asked.append(shift.name)
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return shift.load(look)

        return replace(shift, load=inner)

    first = [sets[0], sets[1], load(sets[2], True), sets[3]]
    child = FORK.Process(target=lambda: evaluate(models(), first, store=store))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(store.glob("*.safetensors"))) == 4

    report = evaluate(models(), sets, store=store)
    assert without_run(report) == without_run(evaluate(models(), sets))
    assert report.run["reused"] == ["id", "sketch"]
    assert report.run["images"] == SIZES["tiny"] + SIZES["single"]
    assert evaluate(models(), sets, store=store).run["images"] == 0


def test_old_answers_serve_nothing_that_has_changed(tmp_path):
    store, data = tmp_path / "answers", random_images(40)
    shift = Shift("x", lambda look: data)
    model = {"m": linear()}

    def reused(shift: Shift = shift, **options) -> bool:
        return evaluate(model, [shift], store=store, **options).run["reused"] == ["x"]

    assert not reused()
    assert reused()
    assert reused(batch_size=3)
    assert reused(replace(shift, licence="another", missing=("y",)))
    assert not reused(precision="bf16")
    assert not reused(decoder="pil")
    assert not reused(unreadable="wrong")
    assert not reused(replace(shift, note="another rule"))
    assert not reused(replace(shift, classes=(0, 1, 2, 3, 4)))
    data.images[17, 0, 0, 0] += 1
    assert not reused()
    assert reused()
    data.labels[3] = (data.labels[3] + 1) % CLASSES
    assert not reused()
    with torch.no_grad():
        model["m"].encoder[1].bias[0] += 1e-3
    assert not reused()
    for path in store.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert not reused()


def kept(folder: Path) -> tuple[ShiftReport, Path, list[str]]:
    """An evaluation with its one file of answers, and what is in the folder."""
    report = evaluate({"m": models()["misled"]}, [painted("x", 40, 9)], store=folder)
    (path,) = folder.glob("*.safetensors")
    return report, path, sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_damaged_answers_are_made_again(tmp_path, place):
    report, path, names = kept(tmp_path)
    whole = path.read_bytes()
    # Past the header, which only has to be read: one bit of the answers themselves.
    start = 8 + int.from_bytes(whole[:8], "little")
    at = int(start + place * (len(whole) - start))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    again, _, left = kept(tmp_path)
    assert not again.run["reused"]
    assert again.rows == report.rows
    assert left == names
    assert kept(tmp_path)[0].run["reused"] == ["x"]


def test_answers_of_another_model_or_set_are_not_believed(tmp_path):
    report, path, _ = kept(tmp_path / "a")
    other = models()["misled"]
    other.encoder.scale.data.fill_(-1)
    evaluate({"m": other}, [painted("x", 40, 9)], store=tmp_path / "b")
    evaluate({"m": models()["misled"]}, [painted("x", 41, 9)], store=tmp_path / "c")
    for folder in ("b", "c"):
        (foreign,) = (tmp_path / folder).iterdir()
        path.write_bytes(foreign.read_bytes())
        again = kept(tmp_path / "a")[0]
        assert again.rows == report.rows
        assert not again.run["reused"]


def forged(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Answers with other content or metadata, in a whole file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        tensors, facts = load_file(path), file.metadata()
    change(tensors, facts)
    save_file(tensors, path, facts)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, facts: tensors["correct"].fill_(True),
        lambda tensors, facts: tensors.pop("nll"),
        lambda tensors, facts: tensors.update(more=torch.zeros(1)),
        lambda tensors, facts: facts.clear(),
        lambda tensors, facts: facts.update(key="0" * 64),
    ],
)
def test_answers_that_someone_else_has_written_are_not_believed(tmp_path, change):
    report, path, _ = kept(tmp_path)
    forged(path, change)
    again = kept(tmp_path)[0]
    assert again.rows == report.rows
    assert not again.run["reused"]


def test_what_is_no_file_of_answers_is_passed_over(tmp_path):
    report, path, _ = kept(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert kept(tmp_path)[0].rows == report.rows
    assert path.is_file()


@pytest.mark.parametrize("place", ["a", "p"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / place).write_text("a file")
    with pytest.raises(InputError, match="Cannot write") as caught:
        evaluate(models(), odd_sets()[1:2], store=tmp_path / "a", predictions=tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_an_evaluation_that_fails_leaves_no_unfinished_predictions(tmp_path):
    bad = painted("x", 20)
    bad.load(None).labels[15] = CLASSES
    with pytest.raises(InputError):
        evaluate(models(), [bad], batch_size=5, predictions=tmp_path / "p")
    assert not list((tmp_path / "p").iterdir())


def test_predictions_are_those_of_the_models(tmp_path):
    import pyarrow.parquet as pq

    torch.manual_seed(0)
    model = linear()
    data = random_images(23)
    data.labels[data.labels == 1] = 2
    shift = Shift("x", lambda look: data, classes=(0, 2, 3, 4))
    report = evaluate({"a model": model}, [shift], 10, predictions=tmp_path)
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"x--a_model--[0-9a-f]{8}\.parquet", path.name)
    table = pq.read_table(path).to_pydict()
    with torch.no_grad():
        logits = model(data.images.float() / 255)[:, [0, 2, 3, 4]]
    assert table["path"] == [str(i) for i in range(23)]
    assert table["label"] == data.labels.tolist()
    assert torch.tensor(table["logits"]).equal(logits)
    classes = torch.tensor([0, 2, 3, 4])
    assert table["top5"] == classes[logits.argsort(1, descending=True)].tolist()
    assert sum(table["correct"]) == report.row("a model", "x").correct
    assert all(table["readable"])
    assert pq.read_schema(path).metadata[b"classes"] == b"[0, 2, 3, 4]"


def test_predictions_of_several_processes_are_one_file_in_order(everything, tmp_path):
    import pyarrow.parquet as pq

    shifts = find(everything, "imagenet/r", "imagenet/a")
    alone, together = tmp_path / "alone", tmp_path / "together"
    evaluate({"m": SeesTheColour()}, shifts, predictions=alone)

    def make(path: Path) -> None:
        evaluate({"m": SeesTheColour()}, shifts, 1, predictions=together)

    in_processes(3, tmp_path / "out", make)
    names = sorted(p.name for p in together.iterdir())
    assert [name[:13] for name in names] == ["imagenet_a--m", "imagenet_r--m"]
    for name, count in zip(names, (3, 4), strict=True):
        table = pq.read_table(together / name)
        assert table.to_pydict() == pq.read_table(alone / name).to_pydict()
        assert table.num_rows == count
        assert all(Path(path.as_py()).is_file() for path in table["path"])


def test_models_and_sets_of_alike_names_have_files_of_their_own(tmp_path):
    import pyarrow.parquet as pq

    twins = ("night rain", "night_rain", "Night_rain", "nächtlicher Regen" * 20)
    both = {name: Sees(ReadsTheLabel(k > 0)) for k, name in enumerate(twins)}
    sets = [painted(name, 5 + k, 2) for k, name in enumerate(twins)]
    report = evaluate(both, sets, store=tmp_path / "a", predictions=tmp_path / "p")
    tables = [pq.read_table(path) for path in (tmp_path / "p").iterdir()]
    assert len(tables) == len({path.name.lower() for path in (tmp_path / "p").iterdir()}) == 16
    found = sorted((table.num_rows, sum(table["correct"].to_pylist())) for table in tables)
    assert found == sorted((row.total, row.correct) for row in report.of("accuracy") if row.total)
    assert evaluate(both, sets, store=tmp_path / "a").rows == report.rows


def test_two_evaluations_of_one_folder_at_once_do_not_touch_each_other(tmp_path):
    import pyarrow.parquet as pq

    def run() -> ShiftReport:
        return evaluate({"m": outer}, odd_sets()[:1], 10, store=tmp_path, predictions=tmp_path)

    class Interrupted(ReadsTheLabel):
        """An encoder in whose midst another evaluation begins and ends."""

        inner = None

        def forward(self, images):
            if Interrupted.inner is None:
                Interrupted.inner = False
                Interrupted.inner = run()
            return super().forward(images)

    outer = Sees(Interrupted(False))
    assert run().rows == Interrupted.inner.rows
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path)["label"].to_pylist() == odd_sets()[0].load(None).labels.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_answers_without_their_predictions_are_made_again(tmp_path):
    def images(**options) -> int:
        return evaluate(models(), odd_sets()[:1], store=tmp_path / "a", **options).run["images"]

    assert images() == 53
    assert images(predictions=tmp_path / "p") == 53
    assert images(predictions=tmp_path / "p") == 0
    next((tmp_path / "p").iterdir()).unlink()
    assert images(predictions=tmp_path / "p") == 53


def test_predictions_need_pyarrow(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install 'cfmask") as caught:
        evaluate(models(), odd_sets(), predictions=tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_points_of_a_line_are_kept_under_keys_of_their_own(tmp_path, small_cnn):
    """Each is found again by its weights, also under another name, and no other one is."""
    tuned = copy.deepcopy(small_cnn)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.1 * torch.randn_like(weight)
    line = WeightLine(small_cnn, tuned)
    models = {f"at {alpha}": Blend(line, alpha) for alpha in (0.25, 0.5, 0.75)}
    keys = Inference(models, Settings(store=tmp_path))._model_keys()
    assert [keys[name] for name in models] == [
        model_key(interpolate(small_cnn, tuned, alpha)) for alpha in (0.25, 0.5, 0.75)
    ]
    assert len(set(keys.values())) == 3
