"""Methods: one file each."""

from cfmask.methods.base import Method
from cfmask.methods.distillation import Distillation
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.linear_probe import LinearProbe
from cfmask.methods.masked_distillation import MaskedDistillation

__all__ = ["Distillation", "FineTuning", "LinearProbe", "MaskedDistillation", "Method"]
