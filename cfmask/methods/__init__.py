"""Methods: one file each."""

from cfmask.methods.base import Method
from cfmask.methods.carft import CARFT
from cfmask.methods.carot import CaRot
from cfmask.methods.clipood import CLIPood
from cfmask.methods.distillation import Distillation
from cfmask.methods.finetuning import FineTuning
from cfmask.methods.flyp import FLYP
from cfmask.methods.l2sp import L2SP
from cfmask.methods.linear_probe import LinearProbe
from cfmask.methods.lipsum import LipsumFT
from cfmask.methods.lora import LoRA
from cfmask.methods.lpft import LPFT
from cfmask.methods.masked_distillation import MaskedDistillation
from cfmask.methods.r_adapter import RAdapter
from cfmask.methods.spd import SPD
from cfmask.methods.starft import StarFT
from cfmask.methods.tracer import TRACER

__all__ = [
    "CARFT",
    "FLYP",
    "L2SP",
    "LPFT",
    "SPD",
    "TRACER",
    "CLIPood",
    "CaRot",
    "Distillation",
    "FineTuning",
    "LinearProbe",
    "LipsumFT",
    "LoRA",
    "MaskedDistillation",
    "Method",
    "RAdapter",
    "StarFT",
]
