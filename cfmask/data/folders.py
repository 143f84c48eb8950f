"""Image folders: one folder a class, any picture format that PIL reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

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
            self.samples = ImageFolder(self.root, is_valid_file=_is_picture).samples
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
        image = read_image(self.samples[index][0], self.preprocess.decoder)
        return self.preprocess(image), int(self.labels[index])


def _is_picture(path: str) -> bool:
    return path.lower().endswith((*IMG_EXTENSIONS, ".gif", ".avif"))


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count."""
    if not root.is_dir():
        raise InputError(f"Expected a folder of images, but {root} does not exist.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
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
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=rng)
    sizes = labels.bincount()
    # Largest remainder: every class gives its share, rounded up or down.
    quota, rest = sizes * count // len(labels), sizes * count % len(labels)
    most = (rest + torch.rand(len(sizes), generator=rng)).argsort(descending=True)
    quota[most[: count - int(quota.sum())]] += 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(quota.tolist()):
        held[order[labels[order] == label][:share]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
