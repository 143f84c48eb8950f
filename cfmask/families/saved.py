"""The classifier of an earlier run or of a file, as the starting point of another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cfmask.checkpoint import start_from
from cfmask.classifier import Classifier, Layout


class SavedClassifier(Classifier):
    """The classifier of a run folder or weights file, as the starting point of another run.

    It is `start_from` for configurations, which want a class: the object that it makes is of the
    class that the file names, such as `OpenClipClassifier`.

    Args:
        path: run folder, whose tuned weights are taken, .safetensors or .ckpt file.
        class_names: K names, in the order of the labels. The commands take them from the data. With
            other names than its own the classifier gets a fresh linear head.
        trust: import the class that the file names, if it is not imported yet.

    Raises:
        InputError: see `cfmask.load_classifier`.
    """

    def __new__(cls, path: str, class_names: Sequence[str] = (), trust: bool = False) -> Any:
        """The classifier of the file."""
        return start_from(path, class_names, trust)

    def __init__(self, path: str, class_names: Sequence[str] = (), trust: bool = False) -> None:
        raise AssertionError("what is made is of another class, and has been built")

    @classmethod
    def layout_of(cls, encoder: nn.Module, image_size: tuple[int, int]) -> Layout:
        """That of the family that the file names."""
        raise AssertionError("what is made is of another class")
