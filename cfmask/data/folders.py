"""Image folders: one folder a class, any picture format that PIL reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from cfmask.data.images import Preprocess, read_image
from cfmask.errors import InputError


class Folder(Dataset[tuple[Tensor, int]]):
    """Images of a folder with one subfolder a class.

    Args:
        root: the folder.
        preprocess: picture -> uint8 (3, H, W).
        classes: names of the class folders in the order of the labels; the default is their sorted
            order. Folders of this set may be fewer, never others.

    Raises:
        InputError: no folder, no class folders, a class without images, a class that is not among
            `classes`.
    """

    def __init__(
        self, root: str | Path, preprocess: Preprocess, classes: Sequence[str] | None = None
    ) -> None:
        self.root = Path(root)
        self.preprocess = preprocess
        found = class_folders(self.root)
        self.classes = list(classes) if classes is not None else found
        other = [name for name in found if name not in self.classes]
        if other:
            raise InputError(
                f"Expected the classes of {self.root} among those of training "
                f"({', '.join(self.classes[:8])}{', …' if len(self.classes) > 8 else ''}), but got "
                f"{', '.join(other[:8])}; rename or remove these folders."
            )
        try:
            self.samples = ImageFolder(self.root).samples
        except FileNotFoundError as error:
            raise InputError(
                f"Expected images in every class folder of {self.root}, but some are empty: "
                f"{str(error).split('classes ')[-1].split('. ')[0]}"
            ) from error
        self.labels = torch.tensor([self.classes.index(found[k]) for _, k in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) and its label."""
        image = read_image(self.samples[index][0])
        return self.preprocess(image), int(self.labels[index])


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted."""
    if not root.is_dir():
        raise InputError(f"Expected a folder of images, but {root} does not exist.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not names:
        raise InputError(
            f"Expected one folder a class with images in {root}, but it has no folder."
        )
    return names


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that every class is held out in proportion.

    Args:
        labels: int64 (N,).
        count: how many to hold out, in [1, N - 1]; the shares of the
            classes are rounded so that exactly `count` come out.
        seed: of the choice.

    Returns:
        Indices kept and indices held out, both int64 and sorted.
    """
    if not 0 < count < len(labels):
        raise InputError(
            f"Expected to hold out 1 to {len(labels) - 1} of {len(labels)} images, but got {count}."
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # Rank of each image within its class, as a share: the lowest ones spread over all classes.
    share = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        share[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order[share[order].argsort(stable=True)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
