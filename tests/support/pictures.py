"""Pictures of noise, turned and broken ones."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, kind)
    return stream.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


BROKEN = {
    "truncated jpeg": encoded("jpeg")[:2000],
    "truncated png": encoded("png")[:2000],
    "truncated gif": encoded("gif")[:1500],
    "header of a jpeg alone": encoded("jpeg")[:20],
    "png with a wrong byte": flipped(encoded("png")),
    "empty": b"",
    "text": b"This is not a picture.\n",
}
