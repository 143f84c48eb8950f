"""Sets about backgrounds: CounterAnimal and ImageNet-9."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from cfmask.data.file_index import class_folders
from cfmask.errors import InputError
from cfmask.files import read_json
from cfmask.shift import Size
from cfmask.shifts.imagenet_val import AS_STORED
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import AsStored, Contents, Samples, pictures
from cfmask.wordnet import synsets

IN9_CLASSES = (
    "00_dog",
    "01_bird",
    "02_wheeled vehicle",
    "03_reptile",
    "04_carnivore",
    "05_insect",
    "06_musical instrument",
    "07_primate",
    "08_fish",
)
IN9_MAP = "in_to_in9.json"
IN9_SOURCE = "https://github.com/MadryLab/backgrounds_challenge"
# Kinds of ImageNet-9: what is left of object and background (Xiao et al., 2020).
IN9_KINDS = (
    "original",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "only_fg",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
)


def counteranimal(folder: Path, root: Path, group: str) -> Contents:
    """The "common" or the "counter" backgrounds (Wang et al., 2024).

    Class folders are named by head class and name ("10 brambling"); the folders in them by group
    and background ("common-grass").
    """
    samples: Samples = []
    labels: dict[str, int] = {}
    for name in class_folders(folder):
        match = re.match(r"(\d+)\b", name)
        if not match or int(match[1]) >= len(synsets()):
            raise InputError(
                f"Expected the folders of {folder} to begin with the number of a class, like "
                f"'10 brambling', but got {name!r}; remove or rename it."
            )
        labels[name] = int(match[1])
        places = [place for place in class_folders(folder / name) if place.startswith(group)]
        files = (path for place in places for path in pictures(folder / name / place))
        samples += [(path, labels[name]) for path in files]
    note = f"label = number that begins the folder's name; argmax among all classes; {AS_STORED}"
    return Contents.of(samples, note, labels=labels)


def imagenet9(folder: Path, root: Path) -> Contents:
    """One kind of ImageNet-9: nine classes, each of several classes of the head.

    The argmax among all classes is right if the authors' map assigns it to the class, as in their
    code.

    Raises:
        InputError: the map is not there or is damaged.
    """
    labels = {name: k for k, name in enumerate(IN9_CLASSES)}
    note = (
        f"nine classes; right if the argmax among all classes belongs to it by {IN9_MAP}; as "
        "stored, neither resized nor cropped"
    )
    rule: Any = {"accepts": _accepted(folder, root), "dataset": AsStored}
    return Contents.of_folders(folder, labels, "the nine of ImageNet-9", note, **rule)


def _accepted(folder: Path, root: Path) -> dict[int, tuple[int, ...]]:
    """Head classes of each of the nine, by the authors' map, in which -1 stands for none."""
    bases = (folder, *folder.parents[:3], root)
    file = next((base / IN9_MAP for base in bases if (base / IN9_MAP).is_file()), None)
    if file is None:
        raise InputError(
            f"Expected {IN9_MAP}, the map of head classes, in {root} or beside {folder}; get it "
            f"from {IN9_SOURCE}."
        )
    try:
        number = {int(head): int(k) for head, k in read_json(file).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"Cannot read {file}: {error!r:.200}.") from error
    if set(number) != set(range(len(synsets()))) or set(number.values()) - {-1} != set(range(9)):
        raise InputError(
            f"Expected {file} to map 1000 classes to 0 … 8 or -1, but it does not; get it from "
            f"{IN9_SOURCE}."
        )
    return {k: tuple(head for head in sorted(number) if number[head] == k) for k in range(9)}


_COUNTERANIMAL_HOMES = (
    *(f"{home}LAION-final" for home in ("counteranimal/", "CounterAnimal/", "")),
    "counteranimal",
    "CounterAnimal",
)
COUNTERANIMAL = {
    group: Origin(
        f"CounterAnimal, {group} backgrounds",
        _COUNTERANIMAL_HOMES,
        Size(images, 45),
        "https://counteranimal.github.io",
        "photographs of iNaturalist under their own licences",
        partial(counteranimal, group=group),
    )
    for group, images in (("common", 7174), ("counter", 5926))
}
_IN9_HOMES = ("imagenet-9", "ImageNet-9", "imagenet9", "bg_challenge", "backgrounds_challenge")
IMAGENET_9 = {
    kind: Origin(
        f"ImageNet-9 {kind}",
        tuple(f"{home}/{kind}/val" for home in _IN9_HOMES),
        None,
        IN9_SOURCE,
        "not stated by its authors; made of ImageNet's images",
        imagenet9,
        in_distribution=kind == "original",
    )
    for kind in IN9_KINDS
}
