"""The page about hidden parts: its commands run, its tables are whole, its masks cover objects."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import missingness_training as training
from missingness import OUTLINES, crops, outlined, photograph

from cfmask import AttentionRelevance
from cfmask.commands.main import main as cfmask
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.object_masks import MaskedDigits

PAGE = (Path(__file__).parents[1] / "docs" / "missingness.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
TRAINING = "python benchmarks/missingness_training.py --out"
SMALL = {
    "missingness": [
        *["--images=2", "--orders=random", "--hidings=grey,removed", "--samples=5"],
        *["--side=16", "--lime.samples=4"],
    ],
    "explain": ["--lime.samples=4", "--hidings=grey"],
}


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("chelsea", "coffee"):
        for photo, mask in [next(crops(name))]:
            for folder in ("photographs", "photos", "imagenet/train/n02123045"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                photo.save(f"{folder}/{name}-0.jpg")
            Path("pixel_imagenet/n02123045").mkdir(parents=True, exist_ok=True)
            mask.save(f"pixel_imagenet/n02123045/{name}-0.png")
            mask.save(f"photographs/{name}-0.png")
    ran = 0
    for line in LINES:
        if not line.startswith("cfmask "):
            assert line.startswith(("python benchmarks/missingness.py --", TRAINING))
            continue
        for model in re.findall(r"timm:\S+", line):
            line = line.replace(model, "timm:test_resnet/random")
        line = line.replace("runs/demo/pretrained.safetensors", "open_clip:tiny-clip/random")
        line = line.replace("runs/demo", "open_clip:tiny-clip")
        words = shlex.split(line)[1:]
        cfmask([*words, *SMALL[words[0]]])
        ran += 1
    assert ran == 8
    said = capsys.readouterr().out
    assert said.count("Everything of this is in") == 6 and said.count("Drawn in") == 2
    assert Path("pixel/accuracy.png").is_file() and not Path("shown/accuracy.png").exists()


def test_every_way_of_hiding_is_on_the_page():
    assert set(HIDINGS) == set(re.findall(r"`(\w+)`", PAGE)) & set(HIDINGS)


@pytest.mark.parametrize("name", OUTLINES)
def test_a_mask_covers_an_object_of_its_crop(name):
    sizes = []
    for photo, mask in crops(name):
        assert photo.size == mask.size
        sizes.append(np.asarray(mask).astype(bool).mean())
    assert len(sizes) == 10 and 0.02 < min(sizes) <= max(sizes) < 0.9
    whole = np.asarray(outlined(name, photograph(name).size)).astype(bool)
    colours = np.asarray(photograph(name)).reshape(-1, 3)
    inside, outside = colours[whole.ravel()].mean(0), colours[~whole.ravel()].mean(0)
    assert np.abs(inside - outside).max() > 5


def test_training_is_told_as_means_with_deviations_and_differences_with_intervals():
    seeds = [
        {"before": {"kept": 1.0}, "fine-tuning": {"kept": 4.0}, "masked": {"kept": 5.0}},
        {"before": {"kept": 3.0}, "fine-tuning": {"kept": 8.0}, "masked": {"kept": 9.0}},
    ]
    before, tuned, masked = training.table(seeds).splitlines()[2:]
    assert before == "| before | 2.0 ± 1.4 |" and tuned == "| fine-tuning | 6.0 ± 2.8 |"
    less, more = training.differences(seeds).splitlines()[2:]
    # Differences -3 and -5: deviation 1.414 over the root of 2 is 1, times t of 1 degree, 12.7.
    assert less == "| before − fine-tuning | -4.0 (-16.7 to +8.7) |"
    assert more == "| masked − fine-tuning | +1.0 (+1.0 to +1.0) |"
    assert "± " not in training.table(seeds[:1]) and "7.0 ± 2.8" in masked


@pytest.mark.slow
def test_training_is_measured_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "METHODS", {training.PLAIN: training.METHODS[training.PLAIN]})
    training.main(tmp_path, seeds=1, epochs=1, images=20)
    shown = capsys.readouterr().out
    assert "seed 0: fine-tuning" in shown and "| before − fine-tuning |" in shown
    training.main(tmp_path, seeds=1, epochs=1, images=20)
    assert capsys.readouterr().out == shown.partition("\n")[2]


def test_the_share_of_the_mask_on_the_digit_equals_a_slow_version(tiny_clip):
    data = MaskedDigits("id", 3, 0)
    images = data.drawn.images.float() / 255
    maps = AttentionRelevance().explain(tiny_clip, images, data.drawn.labels)[1]
    shares = []
    for k in range(3):
        taken = {(r, c) for r in range(6) for c in range(6) if maps[k, r, c] > 0.3}
        rows, columns = data.drawn.digit[k].nonzero(as_tuple=True)
        digit = set(zip((rows // 8).tolist(), (columns // 8).tolist()))
        shares.append(len(taken & digit) / len(taken | digit))
    assert training.covered(tiny_clip, data) == pytest.approx(np.mean(shares))
