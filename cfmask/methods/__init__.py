"""Methods: one file each."""

from cfmask.methods.base import Method
from cfmask.methods.clipood import CLIPood
from cfmask.methods.distillation import Distillation
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.l2sp import L2SP
from cfmask.methods.linear_probe import LinearProbe
from cfmask.methods.lpft import LPFT
from cfmask.methods.masked_distillation import MaskedDistillation
from cfmask.methods.r_adapter import RAdapter
from cfmask.methods.spd import SPD

__all__ = [
    "L2SP",
    "LPFT",
    "SPD",
    "CLIPood",
    "Distillation",
    "FineTuning",
    "LinearProbe",
    "MaskedDistillation",
    "Method",
    "RAdapter",
]
