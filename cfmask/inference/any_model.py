"""AnyModel: any module or function, with its own transform.

Letters: B images, K classes, C channels, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cfmask.decoding import Picture
from cfmask.errors import InputError
from cfmask.images import Preprocess, as_bytes

# Images float (B, C, H, W) -> logits (B, K).
Function = Callable[[Tensor], Any]
# Picture -> float (C, H, W).
Transform = Callable[[Image.Image], Any]
# Side in pixels of the picture by which the output size of a transform is found.
TRIED = 256


class Finish:
    """The user's transform on the images of a set: float (C, H, W), all of one size.

    Args:
        transform: from a Pillow picture, as for torchvision's models.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.shape: tuple[int, ...] | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float (C, H, W) of uint8 (3, H', W').

        Raises:
            InputError: the transform returns something else, or images of several sizes. Its own
                errors are raised as they are.
        """
        made = self.made(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
        shape = tuple(made.shape)
        self.shape = self.shape or shape
        if shape != self.shape:
            raise InputError(
                f"Expected a transform to one size, but got images of {self.shape} and of {shape}; "
                "let it resize and crop."
            )
        return made

    def made(self, picture: Image.Image) -> Tensor:
        """The transform's output for a picture of any size."""
        made = self.transform(picture)
        if not (isinstance(made, Tensor) and made.is_floating_point() and made.ndim == 3):
            is_tensor = isinstance(made, Tensor)
            what = f"{made.dtype} {tuple(made.shape)}" if is_tensor else type(made).__name__
            raise InputError(
                f"Expected a transform from a picture to a float tensor (C, H, W), but got {what}."
            )
        return made.as_subclass(Tensor)


@dataclass(frozen=True)
class Whole(Preprocess):
    """Pictures in their own size, before the user's transform.

    Attributes:
        finish: the transform.
    """

    finish: Finish | None = None

    @classmethod
    def before(cls, transform: Transform) -> Whole:
        """The preprocessing before a transform; its size is that of the transform's output.

        Raises:
            InputError: the transform does not return float (C, H, W).
        """
        finish = Finish(transform)
        height, width = finish.made(Image.new("RGB", (TRIED, TRIED))).shape[1:]
        return cls((height, width), finish=finish)

    def spec(self) -> dict[str, Any]:
        """The transform's own text, for reports."""
        assert self.finish is not None
        return {"transform": " ".join(f"{self.finish.transform}".split())}

    def __call__(self, picture: Picture) -> Tensor:
        """Uint8 (3, H', W') of the picture's own size."""
        return as_bytes(picture)

    def misfit(self, sides: tuple[int, int]) -> str:
        """Nothing is resized here."""
        return ""


class AnyModel(nn.Module):
    """A module or function, images float (B, C, H, W) as its transform makes them -> logits (B, K).

    Args:
        call: the module or function. Logits may be a NumPy array.
        preprocess: holds the transform.
        class_names: K names, in the order of the logits; empty until their number is known.
    """

    def __init__(self, call: Function, preprocess: Whole, class_names: Sequence[str] = ()) -> None:
        super().__init__()
        self.call = call
        self.class_names = tuple(map(str, class_names))
        self.preprocess = preprocess

    @property
    def name(self) -> str:
        """Of the module's class, or of the function."""
        return named(self.call)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, K).

        Raises:
            InputError: another output. Errors of the module or function are raised as they are.
        """
        made = self.call(images)
        logits = torch.from_numpy(made) if isinstance(made, np.ndarray) else made
        count = len(self.class_names) or "K"
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            is_tensor = isinstance(logits, Tensor)
            what = tuple(logits.shape) if is_tensor else type(logits).__name__
            raise InputError(
                f"Expected {self.name} to give logits ({len(images)}, {count}) for images "
                f"{tuple(images.shape)}, but got {what}; wrap it in a function that does."
            )
        if count not in ("K", logits.shape[1]):
            raise InputError(
                f"Expected {self.name} to give a logit for each of {count} class names, but got "
                f"{logits.shape[1]}; give the names of its classes."
            )
        return logits.float()

    def numbered(self, image: Tensor) -> None:
        """Name classes without names by their numbers, from the logits of an image (C, H, W)."""
        if not self.class_names:
            self.class_names = tuple(map(str, range(self(image.unsqueeze(0)).shape[1])))


def named(call: Function) -> str:
    """Name of a function, or of the class of a module."""
    return str(getattr(call, "__name__", type(call).__name__))
