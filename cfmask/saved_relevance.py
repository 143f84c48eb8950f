"""Saved relevance: maps that any model has made once, looked up in every epoch.

They are found by a hash of the image's pixels, so that order, devices and file names do not matter;
augmented images are not found.

Letters: N images, B images of a batch, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.relevance import Relevance
from cfmask.weights import read_tensors


def save_relevance(
    path: str | Path,
    classifier: Classifier,
    relevance: Relevance,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Explain images and write their maps to a safetensors file, in half precision.

    Args:
        path: file to write.
        classifier: the model to explain, often the pretrained one; put in eval mode.
        relevance: what makes the maps.
        batches: images float (B, 3, H, W) in [0, 1] and labels int64 (B,), as in training.
    """
    classifier.eval()
    keys, maps = [], []
    for images, labels in batches:
        keys.append(_keys(images))
        maps.append(relevance.explain(classifier, images, labels)[1].half().cpu())
    found, order = torch.cat(keys).cpu().sort()
    save_file({"keys": found, "maps": torch.cat(maps)[order].contiguous()}, path)


class SavedRelevance(Relevance):
    """Maps of `save_relevance`, of any grid; costs no backward pass.

    Args:
        path: the file.

    Raises:
        InputError: no such file, or another kind of file.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise InputError(f"Expected a file of saved relevance, but {path} does not exist.")
        tensors = read_tensors(Path(path))
        if set(tensors) != {"keys", "maps"}:
            raise InputError(f"Expected a file that save_relevance wrote, but {path} is another.")
        self.path = path
        self.keys, self.maps = tensors["keys"], tensors["maps"]

    def explain(
        self, classifier: Classifier, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Relevance.explain`.

        Raises:
            InputError: an image that is not in the file.
        """
        self.keys, self.maps = self.keys.to(images.device), self.maps.to(images.device)
        wanted = _keys(images)
        places = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        absent = int((self.keys[places] != wanted).sum())
        if absent:
            raise InputError(
                f"Expected saved relevance in {self.path} for all images, but {absent} of "
                f"{len(images)} have none; were they augmented, resized or added since?"
            )
        return classifier(images), self.maps[places].to(images.dtype)


def _keys(images: Tensor) -> Tensor:
    """A 64-bit hash int64 (B,) of each image's bytes: their sum by random odd weights."""
    values = (images.flatten(1) * 255).round().long()
    state = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, values.shape[1:], generator=state) * 2 + 1
    return (values * weights.to(images.device)).sum(1)
