"""Made-up ImageNet trees whose images tell their class, and a classifier that reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn

from cfmask import Classifier, InputError, Layout, Preprocess, Spec, evaluate, find_shifts
from cfmask.shift import Request, Shift
from cfmask.shifts.imagenet import IMAGENET
from cfmask.wordnet import real_labels, subset, synsets

SIDE = 8
R, A = subset("r"), subset("a")
# The sets that have files of their own.
ORIGINS = {name: origin for name, origin in IMAGENET.items() if not origin.made_of}
RED = (255, 0, 0)
# ObjectNet's folders here: classes of the head that each is, none for one that ImageNet lacks.
OBJECTS = {"bicycle": (444, 671), "chair": (423, 559, 765), "mug": (504,), "loofah": ()}


def colour(k: int) -> tuple[int, int, int]:
    """The colour of a head class."""
    return k // 10, k % 10 * 20, 7


class ReadsTheColour(nn.Module):
    """Features (B, 1000): one-hot of the class whose colour the first pixel has.

    A class that distracts has a higher logit, whatever is in the image.
    """

    def __init__(self, distraction: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.distraction = distraction

    def forward(self, images):
        red, green, _ = (images[:, :, 0, 0] * 255).round().long().unbind(1)
        logits = nn.functional.one_hot((red * 10 + green // 20).clamp(0, 999), 1000) * self.scale
        if self.distraction is not None:
            logits[:, self.distraction] = 2
        return logits


class Sees(Classifier):
    """A classifier of 1000 classes with the encoder's features as logits."""

    def __init__(self, distraction: int | None = None, side: int = SIDE) -> None:
        names = tuple(f"class {k}" for k in range(1000))
        spec = Spec("ReadsTheColour", names, Preprocess((side, side)))
        super().__init__(ReadsTheColour(distraction), nn.Identity(), spec)
        self.eval()

    @classmethod
    def layout_of(cls, encoder, image_size):
        return Layout((1, 1), "")


NAMES = Sees().class_names


def paint(path: Path, k: int, size: tuple[int, int] = (12, 12)) -> None:
    """A picture in the colour of a class; lossless, whatever its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(k)).save(path, format="PNG")


def plant(folder: Path, classes: Sequence[int], names: Mapping[int, str] | None = None) -> None:
    """Class folders with a picture for each time that a class is named."""
    for i, k in enumerate(classes):
        paint(folder / (names or dict(enumerate(synsets())))[k] / f"{i}.JPEG", k)


def plant_val(folder: Path, classes: Sequence[int]) -> None:
    """Class folders with files named as in val, by numbers whose ReaL label is that class alone."""
    real = real_labels()
    for i, k in enumerate(classes):
        number = [n for n, seen in enumerate(real, 1) if seen == (k,)][classes[:i].count(k)]
        paint(folder / synsets()[k] / f"ILSVRC2012_val_{number:08d}.JPEG", k)


def plant_objectnet(folder: Path) -> None:
    """Pictures with a red border of 2 pixels, then a ring in the colour of the class; the mapping
    files with the odd order and the doubled label ("crane") of the real ones."""
    for name, classes in OBJECTS.items():
        for k in classes or [0]:
            path = folder / "images" / name / f"{k}.png"
            paint(path, 300, (12, 12))
            with Image.open(path) as image:
                image.paste(RED, (0, 0, 12, 12))
                image.paste(colour(k), (2, 2, 10, 10))
                image.paste(colour(300), (3, 3, 9, 9))
                image.save(path)
    label = {k: "crane" if k in (134, 517) else f"thing {k}, object {k}" for k in range(1000)}
    line = {k: (7 * k + 3) % 1000 for k in range(1000)}
    at = {number: label[k] for k, number in line.items()}
    overlap = {f"The {n}": "; ".join(map(label.get, ks)) for n, ks in OBJECTS.items() if ks}
    (folder / "mappings").mkdir()
    for name, content in {
        "folder_to_objectnet_label.json": json.dumps({n: f"The {n}" for n in OBJECTS}),
        "objectnet_to_imagenet_1k.json": json.dumps(overlap),
        "pytorch_to_imagenet_2012_id.json": json.dumps({str(k): n for k, n in line.items()}),
        "imagenet_to_label_2012_v2": "".join(f"{at[n]}\n" for n in range(1000)),
    }.items():
        (folder / "mappings" / name).write_text(content)


def devkit_number(k: int) -> int:
    """The devkit's own number of a head class, here an odd one."""
    return (13 * k + 5) % 1000 + 1


@cache
def devkit_table() -> bytes:
    """A meta.mat of the 1000 classes and of inner nodes of the hierarchy."""
    rows = [(devkit_number(k), wnid, f"the {wnid}, thing", 0) for k, wnid in enumerate(synsets())]
    rows += [(1001 + k, f"n0000000{k}", "entity", 2) for k in range(3)]
    table = np.empty(
        (len(rows), 1),
        [(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    for i, (n, wnid, words, children) in enumerate(sorted(rows)):
        table[i, 0] = (float(n), wnid, words, "", float(children))
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def plant_devkit(folder: Path, classes: Sequence[int]) -> None:
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(devkit_table())
    truth = "".join(f"{devkit_number(k)}\n" for k in classes)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


VAL = (0, 1, 1, 6, 11, 998)
PLANTED = {
    "val": VAL,
    "v2": (0, 1, 2, 10, 11, 100),
    "r": (1, 6, 6, R[-1]),
    "sketch": (0, 500, 998),
    "a": (6, 11, A[-1]),
    "v2-threshold0.7": (9, 10),
    "v2-top-images": (2, 19),
}


def plant_one(root: Path, name: str) -> None:
    numbered = {k: str(k) for k in range(1000)}
    place = root / ORIGINS[name].places[0]
    if name == "objectnet":
        plant_objectnet(place)
    elif name == "val":
        plant_val(place, VAL)
    else:
        plant(place, PLANTED[name], numbered if name.startswith("v2") else None)


def find(root: Path | None, *names: str, class_names: Sequence[str] = NAMES, small: bool = True):
    return find_shifts(list(names), Request(root, class_names, allow_incomplete=small))


def score(shift: Shift, distraction: int | None = None, side: int = SIDE) -> tuple[int, int]:
    """Right ones and all."""
    (row,) = evaluate({"m": Sees(distraction, side)}, [shift]).of("accuracy")
    return row.correct, row.total


def refusal(root: Path | None, *names: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        find(root, *names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
