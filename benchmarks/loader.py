"""Images a second and core of loaders: ``python benchmarks/loader.py``.

Writes JPEG files made from photographs of scikit-image, 500 x 375 pixels as most of ImageNet's, and
reads them in batches, in one process on one core, with

- Pillow and torchvision's Resize, CenterCrop, ToTensor, which is what most codes do,
- timm's loader,
- cfmask's with either decoder.

Prints images a second of CPU time, the best of some rounds, and how far the images are from those
of the first. How much the fast decoder gains depends on the quality of the JPEG files: the higher
it is, the more of the time is entropy decoding, which no decoder is spared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import skimage.data
import timm.data
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cfmask.data.folders import Folder
from cfmask.images import Preprocess, to_unit

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry")
BATCH = 50
Batches = Iterable[tuple[Tensor, Tensor]]


def write_photographs(folder: Path, count: int, quality: int) -> float:
    """Write crops of photographs as JPEG files of two classes; gives their mean size in bytes."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(getattr(skimage.data, name)()[..., :3]) for name in PHOTOS]
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        # Three of four lie, one stands.
        wide, high = (375, 500) if i % 4 == 3 else (500, 375)
        scale = rng.uniform(0.6, 1) * min(picture.width / wide, picture.height / high)
        part = int(wide * scale), int(high * scale)
        x, y = (int(rng.integers(0, n - p + 1)) for n, p in zip(picture.size, part, strict=True))
        crop = picture.crop((x, y, x + part[0], y + part[1]))
        crop.resize((wide, high), Image.Resampling.LANCZOS).save(
            folder / "ab"[i % 2] / f"{i:04}.jpg", quality=quality
        )
    return sum(file.stat().st_size for file in folder.glob("*/*.jpg")) / count


def common(folder: Path) -> Batches:
    """Pillow and torchvision."""
    steps = [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
    ]
    return DataLoader(ImageFolder(folder, transforms.Compose(steps)), BATCH)


def timms(folder: Path) -> Batches:
    """The loader of timm, for a CPU: normalised floats come out."""
    data = timm.data.create_dataset("", root=str(folder))
    loader: Batches = timm.data.create_loader(
        data,
        (3, 224, 224),
        BATCH,
        use_prefetcher=False,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        num_workers=0,
        persistent_workers=False,
    )
    return loader


def exact(folder: Path) -> Batches:
    """Ours with Pillow."""
    return DataLoader(Folder(folder, Preprocess(decoder="pil")), BATCH)


def fast(folder: Path) -> Batches:
    """Ours with torchvision's decoder."""
    return DataLoader(Folder(folder, Preprocess(decoder="fast")), BATCH)


LOADERS: dict[str, Callable[[Path], Batches]] = {
    "Pillow + torchvision": common,
    "timm": timms,
    "cfmask, decoder pil": exact,
    "cfmask, decoder fast": fast,
}


def seconds(batches: Batches) -> float:
    """CPU time of one pass, of all threads of this process."""
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def differences(batches: Batches, reference: Batches) -> tuple[int, float]:
    """Largest difference of a value in units of 1/255, and the share of values that differ."""
    largest, differing, total = 0, 0, 0
    for (images, _), (expected, _) in zip(batches, reference, strict=True):
        gap = ((to_unit(images) - expected) * 255).round().abs()
        largest = max(largest, int(gap.max()))
        differing += int((gap > 0).sum())
        total += gap.numel()
    return largest, differing / total


def measure(images: int = 200, rounds: int = 3, quality: list[int] = [75, 90, 95]) -> None:  # noqa: B006
    """Print the table.

    Args:
        images: number of files.
        rounds: passes over them; the loaders take turns, and the best pass of each counts.
        quality: of the JPEG files; a table for each.
    """
    torch.set_num_threads(1)
    for value in quality:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = write_photographs(folder, images, value)
            Console().print(table(folder, images, rounds, f"quality {value}, {size / 1e3:.0f} kB"))


def table(folder: Path, images: int, rounds: int, title: str) -> Table:
    """All loaders on the files of a folder."""
    passes = [
        {name: seconds(make(folder)) for name, make in LOADERS.items()} for _ in range(rounds)
    ]
    best = {name: min(one[name] for one in passes) for name in LOADERS}
    first = next(iter(LOADERS))
    rows = Table("loader", "images/s and core", "ratio", "largest difference", title=title)
    for name, make in LOADERS.items():
        largest, share = differences(make(folder), LOADERS[first](folder))
        rate, ratio = images / best[name], best[first] / best[name]
        rows.add_row(name, f"{rate:.0f}", f"{ratio:.2f}", f"{largest}/255 ({share:.1%} differ)")
    return rows


if __name__ == "__main__":
    auto_cli(measure, as_positional=False)
