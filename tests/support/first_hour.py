"""A folder of real photographs, and the commands of somebody's first hour with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data, filters
from sklearn.datasets import load_sample_image

SIDE = 160


def pictures() -> dict[str, np.ndarray]:
    """Photographs uint8 (H, W, 3) that scikit-image and scikit-learn bring, by what is on them."""
    return {
        "astronaut": data.astronaut(),
        "brick": grey(data.brick()),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "coins": grey(data.coins()),
        "flower": load_sample_image("flower.jpg"),
        "grass": grey(data.grass()),
        "gravel": grey(data.gravel()),
        "rocket": data.rocket(),
        "temple": load_sample_image("china.jpg"),
    }


def grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2)


def plant_photographs(root: Path, count: int = 24, sketches: int = 6) -> Path:
    """Class folders of crops of each photograph, and a folder `sketches` of their edges.

    Args:
        root: the folder.
        count: photographs of a class.
        sketches: of a class.
    """
    rng = np.random.default_rng(0)
    for name, image in pictures().items():
        folders = root / name, root / "sketches" / name
        for folder in folders:
            folder.mkdir(parents=True)
        for k in range(count + sketches):
            crop = Image.fromarray(a_part(image, rng)).resize((SIDE, SIDE))
            if k < count:
                crop.save(folders[0] / f"{k}.jpg")
                continue
            edges = filters.sobel(np.asarray(crop.convert("L")) / 255)
            drawn = 255 - (255 * edges / edges.max()).astype(np.uint8)
            Image.fromarray(drawn).save(folders[1] / f"{k - count}.png")
    return root


def a_part(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of 40 to 80 % of the short side, flipped at times."""
    side = int(min(image.shape[:2]) * rng.uniform(0.4, 0.8))
    top, left = (int(rng.integers(0, extent - side)) for extent in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
