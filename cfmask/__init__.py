"""cfmask: robust fine-tuning of image encoders with masked images as counterfactual samples."""

from cfmask.checkpoint import average, interpolate, load_classifier, save_classifier
from cfmask.classifier import Classifier
from cfmask.counterfactual import (
    BlurFill,
    ConstantFill,
    ContextMask,
    Counterfactual,
    MultiFill,
    NoFill,
    ObjectMask,
    RandomMask,
    ShuffleFill,
    SingleFill,
)
from cfmask.data.datamodule import DigitsData, FolderData
from cfmask.data.images import RandomCrop
from cfmask.data.shards import ShardData
from cfmask.data.shifts import SHIFTS, find_shifts
from cfmask.errors import InputError
from cfmask.evaluation.evaluate import evaluate
from cfmask.families.openclip import OpenClipClassifier
from cfmask.families.timm import TimmClassifier
from cfmask.methods import Distillation, FineTuning, LinearProbe, MaskedDistillation, Method
from cfmask.relevance import (
    AttentionRelevance,
    AttentionRollout,
    GradCAM,
    HiResCAM,
    LayerCAM,
    Relevance,
)
from cfmask.reporting.report import ShiftReport
from cfmask.saved_relevance import SavedRelevance, save_relevance

__version__ = "0.1.0"

__all__ = [
    "SHIFTS",
    "AttentionRelevance",
    "AttentionRollout",
    "BlurFill",
    "Classifier",
    "ConstantFill",
    "ContextMask",
    "Counterfactual",
    "DigitsData",
    "Distillation",
    "FineTuning",
    "FolderData",
    "GradCAM",
    "HiResCAM",
    "InputError",
    "LayerCAM",
    "LinearProbe",
    "MaskedDistillation",
    "Method",
    "MultiFill",
    "NoFill",
    "ObjectMask",
    "OpenClipClassifier",
    "RandomCrop",
    "RandomMask",
    "Relevance",
    "SavedRelevance",
    "ShardData",
    "ShiftReport",
    "ShuffleFill",
    "SingleFill",
    "TimmClassifier",
    "average",
    "evaluate",
    "find_shifts",
    "interpolate",
    "load_classifier",
    "save_classifier",
    "save_relevance",
]
