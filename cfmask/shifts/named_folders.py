"""Image sets of the user's own: named folders, with groups or without, or a list of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cfmask.data.file_index import class_folders, entries
from cfmask.data.folders import Folder, Pictures
from cfmask.data.holdout import HELD_OUT, Undivided, undivided
from cfmask.data.shard_index import INDEX, ShardIndex
from cfmask.data.shards import ShardImages, shards_in
from cfmask.decoding import READING
from cfmask.errors import InputError, listed
from cfmask.images import Preprocess
from cfmask.labels import class_numbers
from cfmask.shift import Request, Shift
from cfmask.shifts.image_list import image_list, list_file, listed_classes
from cfmask.shifts.pictures import Contents, Samples
from cfmask.wordnet import is_imagenet


def folder_shifts(request: Request) -> list[Shift]:
    """Every folder beside `data_root/train` is a set; `id`, `test` or `val` is the reference.

    In a set lie class folders, with folders of contexts in them or without, or folders of groups
    with class folders in them, or a list of images (`metadata.csv`, see
    `cfmask.shifts.image_list`), or shards, with an index or without. A list in `data_root` itself
    makes sets of its splits instead. Of a `data_root` without `train/` whose classes lie directly
    in it, the set `id` is what is held out; see `cfmask.data.holdout`.
    For the order of the labels see `class_order`. Images are brought upright, but those of all 1000
    folders of ImageNet are read as stored.

    Raises:
        InputError: no such folder, no sets in it, or folders of other classes.
    """
    root = request.data_root
    if root is None or not root.is_dir():
        raise InputError(f"Expected data_root to be a folder of test folders, but got {root}.")
    if file := list_file(root):
        return _splits(file, request.class_names)
    train, parts = root / "train", undivided(root)
    folders = list(parts.classes) if parts else _folders_of(train) if train.is_dir() else None
    where = root if parts else train
    classes, note = class_order(folders, request.class_names, str(where))
    stored = folders is not None and is_imagenet(folders)
    names = list(parts.sets) if parts else [n for n in class_folders(root) if n != "train"]
    own = [_held_out(parts, request, classes, note, stored)] if parts else []
    if not names and not own:
        raise InputError(f"Expected test folders beside {train}, but there are none.")
    known = [*(shift.name for shift in own), *names]
    reference = next((name for name in (HELD_OUT, "test", "val") if name in known), None)
    # What lies beside the one set that is asked for need not be a set.
    wanted = [request.only] if request.only in names else names
    return own + [_set(root / name, classes, name == reference, note, stored) for name in wanted]


def class_order(
    folders: Sequence[str] | None, class_names: Sequence[str], where: str
) -> tuple[list[str], str]:
    """Names of the class folders in the order of the labels, and how that order was found.

    Without training folders they are the classifier's names. Training folders named as its classes
    have its order; folders of other names stand for its classes in sorted order. For spelling see
    `class_numbers`.

    Args:
        folders: names of the training classes' folders, sorted; None if there are none.
        class_names: of the classifier.
        where: place of the folders, for messages.

    Raises:
        InputError: another number of folders than of classes, a folder named as a class of another
            position, or names that may be several classes.
    """
    if folders is None:
        return list(class_names), "label = class of the classifier that the folder is called by"
    if len(folders) != len(class_names):
        raise InputError(
            f"Expected {len(class_names)} classes in {where}, as the classifier has, but got "
            f"{len(folders)}."
        )
    numbers = class_numbers(folders, class_names, where)
    named = {place: name for name, place in zip(folders, numbers) if place is not None}
    if len(named) == len(class_names):
        order = [named[k] for k in range(len(class_names))]
        return order, "label = class that the folder is called by"
    moved = [(name, k, place) for k, (name, place) in enumerate(zip(folders, numbers))]
    moved = [(name, k, place) for name, k, place in moved if place not in (None, k)]
    if moved:
        name, k, place = moved[0]
        raise InputError(
            f"Expected the folders of {where} in the order of the classifier's classes, but "
            f"{name!r} is folder {k} and class {place}; rename the folders as the classes."
        )
    pairs = ", ".join(f"{name} = {of}" for name, of in list(zip(folders, class_names))[:3])
    return list(folders), f"label = place of the training folder, sorted: {pairs}, …"


def own_class_names(root: Path) -> tuple[str, ...]:
    """Names of the classes of a user's own sets, sorted, for classifiers that bring none.

    They are those of `train/`, or of all sets together where there is none. An underscore becomes a
    space. `root` is the data root of `folder_shifts`.

    Raises:
        InputError: nothing there, or a list that numbers its classes.
    """
    train, parts = root / "train", undivided(root)
    if file := list_file(root):
        names = listed_classes(file)
    elif parts:
        names = list(parts.classes)
    elif train.is_dir():
        names = _folders_of(train)
    else:
        names = [name for folder in class_folders(root) for name in _classes_of(root / folder)]
    return tuple(name.replace("_", " ") for name in sorted(set(names)))


def _classes_of(folder: Path) -> list[str]:
    """Names of the classes of a set: its folders, or those inside its group folders."""
    if file := list_file(folder):
        return listed_classes(file)
    if shards_in(folder):
        return _folders_of(folder)
    inner = class_folders(folder)
    if not _holds_folders(folder, inner):
        return inner
    nested = [(group, name) for group in inner for name in class_folders(folder / group)]
    # Contexts are told from classes by MetaShift's names alone.
    if all(name.startswith(f"{group}(") for group, name in nested):
        return inner
    return [name for _, name in nested]


def _folders_of(folder: Path) -> list[str]:
    """Names of the class folders in a folder, or of the classes of its shards."""
    index = shards_in(folder)
    if index is not None and not index.classes:
        raise InputError(
            f"Expected shards in {folder} with the names of their classes, but there is no {INDEX} "
            "beside them; pack them with cfmask pack."
        )
    return list(index.classes) if index else class_folders(folder)


def _holds_folders(folder: Path, names: Sequence[str]) -> bool:
    """Whether each of these folders has folders in it; hidden ones do not count."""
    return all(any(entries(folder / name).values()) for name in names)


def _held_out(
    parts: Undivided, request: Request, classes: Sequence[str], note: str, stored: bool
) -> Shift:
    """The images that are held out of the training classes."""
    index = parts.index()
    _, numbers = parts.divided(index, request.holdout, request.held_out)
    of = {name: classes.index(name) for name in parts.classes}
    samples = [(index.path(k), of[parts.classes[index.owners[k]]]) for k in numbers.tolist()]
    told = f"{note}; {len(samples)} of {len(index)} images, held out of training; {READING[stored]}"
    return Shift(HELD_OUT, partial(Pictures, samples, as_stored=stored), True, note=told)


def folder_set(folder: Path, class_names: Sequence[str], split: str) -> Shift:
    """The images of one folder, laid out as a set of `folder_shifts` is, with its groups.

    Args:
        folder: it holds class folders, with groups around or contexts in them, a list, or shards.
        class_names: of the classifier, by which the folders are called.
        split: which images of a list to read.

    Raises:
        InputError: nothing there, folders of other classes, or of splits.
    """
    splits = {"train", "test", "val"} & set(class_folders(folder))
    if splits:
        raise InputError(
            f"Expected a folder of class folders, but {folder} holds {min(splits)}; name that."
        )
    _, note = class_order(None, class_names, str(folder))
    return _set(folder, class_names, False, note, False, split)


def _set(
    folder: Path,
    classes: Sequence[str],
    reference: bool,
    note: str,
    stored: bool,
    split: str = "test",
) -> Shift:
    if file := list_file(folder):
        found = image_list(file, classes, split, stored)
        _refuse_nothing(found.samples, file)
        return replace(found, name=folder.name, in_distribution=reference)
    index = shards_in(folder)
    if index is not None:
        return _packed(folder.name, index, classes, reference, note, stored)
    inner = class_folders(folder)
    named = any(k is not None for k in class_numbers(inner, classes, str(folder)))
    grouped = not named and _holds_folders(folder, inner)
    places = [folder / name for name in inner] if grouped else [folder]
    # What is wrong with a folder shows now, not after hours of training.
    parts = [_samples(place, classes) for place in places]
    samples = [sample for part in parts for sample in part]
    titles, told = [name for name, part in zip(inner, parts) for _ in part], "around"
    if not grouped:
        titles, told = contexts(folder, samples) if _holds_folders(folder, inner) else [], "inside"
    names = tuple(dict.fromkeys(titles))
    number = {name: k for k, name in enumerate(names)}
    stored = stored or is_imagenet(class_folders(places[0]))
    found = Contents.of(
        samples,
        f"{note}; {READING[stored]}" + f"; groups: folders {told} the classes" * bool(names),
        dataset=partial(Pictures, as_stored=stored),
        groups=tuple(number[title] for title in titles) if names else None,
        group_names=names,
    )
    return replace(found, name=folder.name, in_distribution=reference)


def contexts(folder: Path, samples: Samples) -> list[str]:
    """The context of each image of a tree class/context, such as "cat(sofa)"; none if one has none.

    That is the name of the folder in the class folder, with the class around it, which the folders
    of MetaShift (Liang and Zou, 2022) have in their names already.
    """
    below = [Path(path).relative_to(folder).parts for path, _ in samples]
    if any(len(parts) < 3 for parts in below):
        return []
    return [
        inner if inner.startswith(f"{name}(") else f"{name}({inner})" for name, inner, *_ in below
    ]


def _packed(
    name: str, index: ShardIndex, classes: Sequence[str], reference: bool, note: str, stored: bool
) -> Shift:
    """Shards as a set: their classes by name, or by number where they have no names."""
    where = f"the shards of {index.folder}"
    found = class_numbers(index.classes, classes, where)
    if None in found:
        raise InputError(
            f"Expected the classes of {where} among {listed(classes)}, but got "
            f"{index.classes[found.index(None)]}; leave it out."
        )
    numbers = [k for k in found if k is not None] or list(range(len(classes)))
    index.check_labels(len(numbers))
    shards = [replace(s, labels=[numbers[k] for k in s.labels]) for s in index.shards]
    whole = ShardIndex(index.folder, tuple(classes), tuple(shards))
    stored = stored or is_imagenet(list(index.classes))
    load = partial(ShardImages, whole, as_stored=stored)
    told = note if index.classes else "label = number in the shards"
    return Shift(name, load, reference, note=f"{told}; {READING[stored]}")


def _samples(place: Path, classes: Sequence[str]) -> Samples:
    """Images of class folders with their labels; the folders may be spelled in another way."""
    spelled, folders = list(classes), class_folders(place)
    for name, k in zip(folders, class_numbers(folders, classes, str(place))):
        if k is not None:
            spelled[k] = name
    found = Folder(place, Preprocess(), spelled)
    return list(found.samples)


def _splits(file: Path, class_names: Sequence[str]) -> list[Shift]:
    """The test and validation images of a list; both are clean sets, in no mean of shifts."""
    lists = {split: image_list(file, class_names, split) for split in ("test", "val")}
    if lists["val"].samples == lists["test"].samples:
        # A list without a column of splits is read whole each time.
        del lists["val"]
    _refuse_nothing([sample for of in lists.values() for sample in of.samples], file)
    sets = {split: of for split, of in lists.items() if of.samples}
    return [replace(of, name=split, in_distribution=True) for split, of in sets.items()]


def _refuse_nothing(samples: Samples, file: Path) -> None:
    if not samples:
        raise InputError(
            f"Expected images of the test or val split in {file}, but it has none; 0 is train, 1 "
            "is val, 2 is test."
        )
