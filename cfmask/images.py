"""Images: RGB pictures of any size -> uint8 (3, H, W) as an encoder takes them.

Pictures of the fast decoder are resized as bytes where torch agrees with Pillow: 99.7 % of the
values are equal, the rest are off by 1 of 255, and about one in three million by 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cfmask.decoding import DECODERS, Decoder, Picture, extent
from cfmask.errors import InputError, UnreadableImage

Interpolation = Literal["bicubic", "bilinear"]
# Pixels of a picture at most once it is resized, before the crop.
MOST_RESIZED = 1 << 25
# Pixels of a side of what an encoder takes at most.
MOST_SIDE = 1 << 13
# How far images may lie outside of [0, 1]: bicubic resizing of floats leaves less, and normalised
# ones or bytes go further.
OUTSIDE = 0.5


@dataclass(frozen=True)
class Preprocess:
    """The transform of training and evaluation: resize the short side, crop the centre.

    Attributes:
        size: (H, W) in pixels of the result.
        crop_pct: share of the resized picture's short side that the crop keeps, in [0.01, 2]; 1
            for CLIP. Above 1 there is black around the picture.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
        decoder: key of `cfmask.decoding.DECODERS`.

    Raises:
        InputError: values outside of these.

    Examples:
        >>> from PIL import Image
        >>> cfmask.Preprocess((32, 32))(Image.new("RGB", (60, 40))).shape
        torch.Size([3, 32, 32])
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    decoder: Decoder = "fast"

    def __post_init__(self) -> None:
        if not _is_size(self.size):
            raise InputError(
                f"Expected the size of images as (height, width), each from 1 to {MOST_SIDE} "
                f"pixels, but got {self.size!r:.60}."
            )
        if not isinstance(self.crop_pct, int | float) or not 0.01 <= self.crop_pct <= 2:
            raise InputError(f"Expected crop_pct from 0.01 to 2, but got {self.crop_pct!r:.60}.")
        if self.interpolation not in get_args(Interpolation) or self.decoder not in DECODERS:
            raise InputError(
                f"Expected interpolation {' or '.join(get_args(Interpolation))} and decoder "
                f"{' or '.join(DECODERS)}, but got {self.interpolation!r} and {self.decoder!r}."
            )
        if math.prod(self._target(*self.size)) > MOST_RESIZED:
            raise InputError(
                f"Expected images of at most {MOST_RESIZED:,} pixels before the crop, but "
                f"size {self.size} with crop_pct {self.crop_pct} asks for more."
            )

    def spec(self) -> dict[str, Any]:
        """What belongs to a model, as plain numbers, strings and lists: all but the decoder."""
        spec = {**asdict(self), "size": list(self.size)}
        del spec["decoder"]
        return spec

    def __call__(self, picture: Picture) -> Tensor:
        """RGB picture to uint8 (3, H, W).

        Raises:
            UnreadableImage: it is so long and narrow that resizing would fill the memory.
        """
        return self.window(picture)

    def window(self, picture: Picture, margin: int = 0) -> Tensor:
        """The crop with `margin` pixels around it, uint8 (3, H + 2m, W + 2m); see `Frame`."""
        from torchvision.transforms.v2 import functional as tv

        sides = extent(picture)
        if why := self._excess(*sides):
            raise UnreadableImage(f"Cannot use an image: {why}. Remove or replace it.")
        mode = tv.InterpolationMode(self.interpolation)
        picture = self.prepared(picture)
        target = self._target(*sides)
        padded = target[0] < self.size[0] or target[1] < self.size[1]
        if isinstance(picture, Tensor) and _shrinks(sides, target) and not padded:
            return centre(_shrunk(picture, target, self.interpolation), *self.size, margin)
        if isinstance(picture, Tensor):
            picture = Image.fromarray(picture.permute(1, 2, 0).numpy())
        resized = tv.resize(picture, target, mode)
        if margin:
            return centre(as_bytes(resized), *self.size, margin)
        return as_bytes(tv.center_crop(resized, list(self.size)))

    def of_map(self, values: Tensor) -> Tensor:
        """A map of a picture's pixels (H, W), such as a mask, cut and resized as the picture is.

        Args:
            values: float, of any height and width; each pixel of the result has its nearest's.
        """
        from torchvision.transforms.v2 import functional as tv

        nearest = tv.InterpolationMode.NEAREST_EXACT
        target = self._target(*values.shape)
        resized = tv.resize(values.unsqueeze(0), target, nearest, antialias=False)
        return tv.center_crop(resized, list(self.size))[0]  # type: ignore[no-any-return]

    def misfit(self, sides: tuple[int, int]) -> str:
        """Why a picture of this size cannot be resized, upright or lying; empty if it can.

        Args:
            sides: (H, W) in pixels.
        """
        return self._excess(*sides) or self._excess(*sides[::-1])

    def _excess(self, high: int, wide: int) -> str:
        height, width = self._target(high, wide)
        if height * width <= MOST_RESIZED:
            return ""
        resized = f"{width} x {height} when resized, above {MOST_RESIZED:,}"
        return f"it has {wide} x {high} pixels and would have {resized}"

    def prepared(self, picture: Picture) -> Picture:
        """The picture in the kind that the decoder works on: a tensor if it is the fast one."""
        if self.decoder == "fast" and isinstance(picture, Image.Image):
            return _interleaved(picture)
        return picture

    def _target(self, high: int, wide: int) -> list[int]:
        """(H, W) in pixels of the picture resized, before the crop."""
        height, width = self.size
        if height == width:
            # As torchvision has it: the short side, and the long one cut to whole pixels.
            short = int(height / self.crop_pct)
            least = min(high, wide)
            return [int(short * high / least), int(short * wide / least)]
        scale = max(height / high, width / wide) / self.crop_pct
        return [max(height, round(high * scale)), max(width, round(wide * scale))]


def _is_size(size: Any) -> bool:
    """Whether this is height and width in whole pixels."""
    pair = isinstance(size, tuple) and len(size) == 2
    return pair and all(type(side) is int and 0 < side <= MOST_SIDE for side in size)


# RGB picture -> uint8 (3, H, W) of the size and interpolation of the preprocessing.
Crop: TypeAlias = Callable[[Picture, Preprocess], Tensor]


class RandomCrop:
    """A random part of the picture, resized to the whole: augmentation of training images.

    The default is that of CLIP's own training and of WiSE-FT (arXiv 2109.01903). It draws from
    torch's generator.

    Args:
        scale: range of the share of the picture's area that is kept, in (0, 1].
        ratio: range of the width of the part divided by its height.
        flip: probability of a horizontal flip, in [0, 1].

    Raises:
        InputError: a range or probability that is none.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"Expected a scale from above 0 to at most 1, but got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise InputError(f"Expected a ratio from above 0 and rising, but got {ratio}.")
        if not 0 <= flip <= 1:
            raise InputError(f"Expected a probability to flip in [0, 1], but got {flip}.")
        self.scale = scale
        self.ratio = ratio
        self.flip = flip

    def __call__(self, picture: Picture, preprocess: Preprocess) -> Tensor:
        """RGB picture to uint8 (3, H, W), of the size and interpolation of `preprocess`."""
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(preprocess.interpolation)
        crop = v2.RandomResizedCrop(preprocess.size, self.scale, self.ratio, mode)
        part = crop(preprocess.prepared(picture))
        flipped = bool(torch.rand(()) < self.flip)
        return as_bytes(v2.functional.horizontal_flip(part) if flipped else part)


class Augmented:
    """Transforms of the whole picture, then its crop, or the preprocessing where there is none.

    The transforms come before the resizing, so that they may change the size.

    Args:
        transforms: each uint8 (3, H, W) -> uint8 (3, H', W'), such as those of
            `torchvision.transforms.v2`.
        crop: of what they give; None resizes it as in evaluation.
    """

    def __init__(
        self, transforms: Sequence[Callable[[Tensor], Any]], crop: Crop | None = None
    ) -> None:
        self.transforms = list(transforms)
        self.crop = crop

    def __call__(self, picture: Picture, preprocess: Preprocess) -> Tensor:
        """RGB picture to uint8 (3, H, W), of the size and interpolation of `preprocess`.

        Raises:
            InputError: a transform gives something else than a picture in bytes.
        """
        pixels = as_bytes(picture)
        for transform in self.transforms:
            pixels = _checked(transform(pixels), transform)
        exact = preprocess.decoder != "fast"
        made = Image.fromarray(pixels.permute(1, 2, 0).numpy()) if exact else pixels
        return self.crop(made, preprocess) if self.crop else preprocess(made)


def augmented(
    augmentation: torch.nn.Module | Sequence[torch.nn.Module] | None, crop: Crop | None
) -> Crop | None:
    """The crop after one transform or several; the crop alone where there is none."""
    if augmentation is None:
        return crop
    several = isinstance(augmentation, Sequence) and not callable(augmentation)
    return Augmented(list(augmentation) if several else [augmentation], crop)  # type: ignore[arg-type, list-item]


def _checked(made: Any, transform: Any) -> Tensor:
    pixels = as_bytes(made) if isinstance(made, Image.Image) else made
    right = isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and pixels.ndim == 3
    if not right or len(pixels) != 3 or not pixels.numel():
        what = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(made)
        raise InputError(
            f"Expected the augmentation {type(transform).__name__} to give images uint8 (3, H, W), "
            f"but got {what}; the classifier itself makes floats and normalises."
        )
    return pixels.as_subclass(Tensor)


def _shrinks(sides: tuple[int, int], target: list[int]) -> bool:
    """Whether torch resizes a picture as Pillow does, to 1 of 255.

    Not if it enlarges, where the rounding of columns and rows adds up; and not if the picture is so
    tall that versions of Pillow from 13 on resize rows before columns, which torch never does.
    """
    (high, wide), (height, width) = sides, target
    return height <= high and width <= wide and high - height <= 2 * (wide - width)


def _shrunk(picture: Tensor, target: list[int], interpolation: str) -> Tensor:
    """Torchvision's resize of bytes, without its overhead."""
    # A batch of one that says channels last, which torch reads and writes fastest.
    batch = picture.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return F.interpolate(batch, target, mode=interpolation, antialias=True)[0]


def centre(pictures: Tensor, height: int, width: int, margin: int) -> Tensor:
    """The crop of torchvision's CenterCrop with `margin` pixels around it, contiguous.

    Args:
        pictures: (..., H', W').
        height: of the crop.
        width: of the crop.
        margin: in pixels.
    """
    top, left = ((n - m) / 2 for n, m in zip(pictures.shape[-2:], (height, width), strict=True))
    # Rounded before the margin is added: half a pixel goes to the even side.
    top, left = round(top) - margin, round(left) - margin
    height, width = height + 2 * margin, width + 2 * margin
    return pictures[..., top : top + height, left : left + width].contiguous()


def as_bytes(picture: Picture) -> Tensor:
    """Uint8 (3, H, W), contiguous."""
    return (_interleaved(picture) if isinstance(picture, Image.Image) else picture).contiguous()


def _interleaved(image: Image.Image) -> Tensor:
    """Uint8 (3, H, W), channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def check_unit(images: Tensor, values: bool) -> None:
    """Refuse images that are no floats in [0, 1].

    Args:
        images: float (B, 3, H, W). Resizing may have left them a little outside.
        values: look at the values, for which the host waits for the device.

    Raises:
        InputError: whole numbers, or values of another range.
    """
    mend = "divide bytes by 255, and leave normalisation to the classifier"
    if not images.is_floating_point():
        raise InputError(f"Expected float images in [0, 1], but got {images.dtype}; {mend}.")
    # Tensors without values, as of tracing, are of classes of their own.
    if not values or type(images) is not Tensor or images.is_meta or images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low < -OUTSIDE or high > 1 + OUTSIDE:
        raise InputError(
            f"Expected images in [0, 1], but got values from {low:.3g} to {high:.3g}; {mend}."
        )


def to_unit(images: Tensor) -> Tensor:
    """Images uint8 in [0, 255] as float in [0, 1]; floats pass."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
