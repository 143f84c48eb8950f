"""Tasks: images of other classes than a classifier's, to be told by text alone."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cfmask import digits
from cfmask.data.datamodule import Tensors, resized
from cfmask.data.file_index import class_folders
from cfmask.data.folders import Pictures
from cfmask.decoding import READING
from cfmask.errors import InputError, unknown
from cfmask.heads import PROMPT
from cfmask.images import Preprocess
from cfmask.shift import Shift, Size, qualified
from cfmask.shifts.pictures import Contents

# Folders of splits, which are no classes.
SPLITS = {"train", "test", "val"}
# What the tiny CLIP was told of the digits world, in words of its captions.
DIGITS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "digit": (digits.CLASS_NAMES, digits.TEMPLATES),
    "style": (tuple(digits.STYLES), [f"a {{}} of a {name}" for name in digits.CLASS_NAMES]),
    "background": (
        [digits.BACKGROUND_WORDS.get(name, name) for name in digits.BACKGROUNDS],
        [f"a picture of a {name} on {{}}" for name in digits.CLASS_NAMES],
    ),
}


@dataclass(frozen=True)
class Task:
    """A set with classes of its own.

    Attributes:
        shift: the set; its labels are the places of the names.
        class_names: of its classes.
        templates: prompts with one `{}` for the name.
    """

    shift: Shift
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.shift.name


def protocol_of_tasks(tasks: Sequence[Task]) -> dict[str, Any]:
    """What the protocol of a report keeps of them; nothing where there are none."""
    facts = {
        task.name: {
            "classes": list(task.class_names),
            "templates": list(task.templates),
            "images": task.shift.found and task.shift.found.images,
            "note": task.shift.note,
        }
        for task in tasks
    }
    return {"tasks": facts} if facts else {}


def find_tasks(names: Sequence[str], images: int, seed: int) -> list[Task]:
    """Tasks by name: folders of class folders, and those of the digits world.

    Args:
        names: folders, `digits` for all tasks of the digits world, or one of them, `digits/style`.
        images: number of images of each task of the digits world.
        seed: of these.

    Raises:
        InputError: nothing there, fewer than two classes, folders of splits, or one task twice.
    """
    titles = [Path(os.path.abspath(name)).name for name in names]
    found = []
    for name, title in zip(names, titles):
        family, _, single = name.partition("/")
        if family == "digits":
            if single and single not in DIGITS:
                raise unknown("task", name, [qualified("digits", kind) for kind in DIGITS])
            kinds = [single] if single else list(DIGITS)
            found += [_of_digits(kind, images, seed) for kind in kinds]
        else:
            short = title if titles.count(title) == 1 else name.strip("/")
            found.append(_of_folder(Path(name), short))
    known = [task.name for task in found]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice:
        raise InputError(f"Expected each task once, but got {twice} twice; leave one out.")
    return found


def _of_digits(kind: str, images: int, seed: int) -> Task:
    """Digits in all styles on all photographs, as the tiny CLIP was pretrained on, test images."""
    digits.check_count(images)
    names, templates = DIGITS[kind]
    count = len(digits.BACKGROUNDS)
    law = digits.Sampling("test", styles=tuple(digits.STYLES), tied=1 / count, backgrounds=count)

    def load(preprocess: Preprocess) -> Tensors:
        drawn = digits.draw(law, images, zlib.crc32(f"task/{kind}/{seed}".encode()))
        labels = {"digit": drawn.labels, "style": drawn.styles, "background": drawn.backgrounds}
        return Tensors(resized(drawn.images, preprocess.size), labels[kind])

    shift = Shift(f"task/{kind}", load, found=Size(images, len(names)), note=f"seed {seed}")
    return Task(shift, tuple(names), tuple(templates))


def _of_folder(folder: Path, short: str) -> Task:
    """The pictures of class folders; an underscore in a name is a space."""
    if not folder.is_dir():
        raise InputError(
            f"Expected a folder of class folders or digits as a task, but {folder} is none."
        )
    names = class_folders(folder)
    if len(names) < 2 or set(names) & SPLITS:
        raise InputError(
            f"Expected folders of at least 2 classes in the task {folder}, but got "
            f"{', '.join(names) or 'none'}; name the folder that holds them, such as "
            f"{folder / 'test'}."
        )
    numbers = {name: k for k, name in enumerate(names)}
    load = partial(Pictures, as_stored=False)
    found = Contents.of_folders(folder, numbers, "classes", READING[False], dataset=load)
    if not found.samples:
        raise InputError(f"Expected images in the class folders of {folder}, but there are none.")
    shift = Shift(f"task/{short}", found.load, found=found.found, note=found.note)
    return Task(shift, tuple(name.replace("_", " ") for name in names), PROMPT)
