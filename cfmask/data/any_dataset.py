"""Images and labels of any dataset: one's own, torchvision's, Hugging Face's."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from typing_extensions import Unpack

from cfmask.data.datamodule import Loading, Sample, TrainingData
from cfmask.data.folder_data import refuse_one_class
from cfmask.data.folders import split
from cfmask.decoding import READING, as_picture
from cfmask.errors import InputError
from cfmask.images import Crop, Preprocess


@dataclass(frozen=True)
class Labelled(Dataset[Sample]):
    """The items of a dataset as images uint8 (3, H, W) and labels.

    Attributes:
        data: items are pairs of image and label, or have both by their keys.
        keys: of image and label.
        classes: number K of classes.
        preprocess: picture -> uint8 (3, H, W).
        crop: augmentation, in place of the preprocessing's resizing and cropping.
        numbers: class that each label of the dataset stands for; None where it is the label itself.
    """

    data: Any
    keys: tuple[str, str]
    classes: int
    preprocess: Preprocess
    crop: Crop | None = None
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 (3, H, W) and its label.

        Raises:
            UnreadableImage: the image cannot be decoded.
            InputError: the item is no image with the number of a class.
        """
        where = f"{index} of {type(self.data).__name__}"
        image, label = self._pair(self.data[index], where)
        picture = as_picture(image, where, self.preprocess.misfit)
        look = self.crop(picture, self.preprocess) if self.crop else self.preprocess(picture)
        return look, self._class(label, where)

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels int64 (N,) without a look at the images; None if the dataset does not tell them.

        It tells them as `targets`, `labels` or a column.
        """
        data, key = self.data, self.keys[1]
        found = next((getattr(data, n) for n in ("targets", "labels") if hasattr(data, n)), None)
        if key in getattr(data, "column_names", ()):
            found = data[key]
        if found is None or len(found) != len(data):
            return None
        whole = type(data).__name__
        return torch.tensor([self._class(k, f"{i} of {whole}") for i, k in enumerate(found)])

    def _class(self, label: Any, where: str) -> int:
        known = self.classes if self.numbers is None else len(self.numbers)
        number = _number(label, known, where)
        return number if self.numbers is None else self.numbers[number]

    def _pair(self, item: Any, where: str) -> Sequence[Any]:
        if isinstance(item, Mapping) and all(key in item for key in self.keys):
            return [item[key] for key in self.keys]
        if isinstance(item, tuple | list) and len(item) == 2:
            return item
        found = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
        raise InputError(
            f"Expected item {where} to be a pair of image and label or to have "
            f"{' and '.join(self.keys)}, but got {found:.200}."
        )


def _number(label: Any, classes: int, where: str) -> int:
    try:
        number = operator.index(label)
    except (TypeError, ValueError) as error:
        several = hasattr(label, "__len__") and not isinstance(label, str | bytes)
        raise InputError(
            f"Expected the label of item {where} to be the number of a class, but got "
            f"{label!r:.60}{'; images of several classes (multi-label) are none' * several}."
        ) from error
    if not 0 <= number < classes:
        raise InputError(
            f"Expected labels from 0 to {classes - 1}, but item {where} has {number}; give the "
            "names of all classes."
        )
    return number


class DatasetData(TrainingData):
    """Images of any dataset with a length: a class of one's own, torchvision's, Hugging Face's.

    An item is a pair of image and label, or has both by their keys. Images are pictures of
    Pillow's, which are brought upright; NumPy arrays uint8 (H, W) or (H, W, 3); or tensors
    (1 or 3, H, W), uint8 or floats in [0, 1], which become bytes. The classifier normalises them.

    Args:
        train: training images.
        class_names: K names, in the order of the labels; by default those that the dataset knows
            as `classes` or as a feature of the label.
        val: images to choose the epoch by; None holds images out of training.
        val_images: how many to hold out, stratified if the dataset tells its labels as `targets`,
            `labels` or a column; below 1 it is the share of them.
        image_key: of the image in items that are mappings.
        label_key: of the label in such items.
        **loading: see `TrainingData`. Unreadable are images that cannot be decoded, and items that
            raise `UnreadableImage`.

    Raises:
        InputError: no dataset with a length, or no class names.
    """

    reading = READING[False]

    def __init__(
        self,
        train: Dataset,  # type: ignore[type-arg]
        class_names: list[str] | None = None,
        val: Dataset | None = None,  # type: ignore[type-arg]
        val_images: float = 0.1,
        image_key: str = "image",
        label_key: str = "label",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        for data in (train, val):
            if data is not None:
                refuse_unsized(data, type(data).__name__)
        self.train, self.val = train, val
        self.keys = image_key, label_key
        self.class_names = tuple(class_names or told_names(train, label_key) or ())
        if not self.class_names:
            raise InputError(
                f"Expected class_names for {type(train).__name__}, which does not tell any; give "
                "the names in the order of the labels."
            )
        refuse_one_class(self.class_names, "class_names")
        self.val_images = val_images

    def load(self, preprocess: Preprocess) -> tuple[Dataset[Sample], Dataset[Sample]]:
        """See `TrainingData.load`."""
        how = self.keys, len(self.class_names), preprocess
        train = Labelled(self.train, *how, self.crop)
        if self.val is not None:
            return train, Labelled(self.val, *how)
        plain = Labelled(self.train, *how)
        labels = torch.zeros(len(plain)).long() if plain.labels is None else plain.labels
        return split(train, plain, labels, self.val_images, self.seed)


def refuse_unsized(data: Any, what: str) -> None:
    """Refuse what is no dataset with a length and items by number, such as a stream.

    Args:
        data: what was given.
        what: it is called in the message.

    Raises:
        InputError: it is none.
    """
    sized = all(hasattr(data, name) for name in ("__len__", "__getitem__"))
    if isinstance(data, Mapping):
        raise InputError(
            f"Expected one dataset, but {what} has {', '.join(map(str, data))}; take one."
        )
    if isinstance(data, IterableDataset) or not sized:
        raise InputError(
            f"Expected a dataset with a length and items by number, but got {what}, which is none; "
            "of a stream make one first."
        )


def told_names(data: Any, key: str = "label") -> list[str] | None:
    """Names of the classes that a dataset of torchvision or Hugging Face knows, by label.

    Args:
        data: the dataset.
        key: of the label in items that are mappings.
    """
    features = getattr(data, "features", None)
    feature = features.get(key) if isinstance(features, Mapping) else None
    names = getattr(data, "classes", None) or getattr(feature, "names", None)
    return [str(name) for name in names] if names else None
