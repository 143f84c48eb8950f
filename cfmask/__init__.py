"""cfmask: robust fine-tuning of image encoders with masked images as counterfactual samples.

What is listed in `__all__` is public. A name is imported when it is first used, so that a command
which needs no model answers at once.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfmask.version import __version__ as __version__

if TYPE_CHECKING:
    from cfmask.checkpoint import average, interpolate, load_classifier, save_classifier, start_from
    from cfmask.classifier import Classifier, Layout, Tokens
    from cfmask.comparison.evaluate import evaluate
    from cfmask.counterfactual import (
        BlurFill,
        ConstantFill,
        ContextMask,
        Counterfactual,
        Fill,
        MultiFill,
        NoFill,
        ObjectMask,
        PatchMask,
        RandomMask,
        ShuffleFill,
        SingleFill,
    )
    from cfmask.data.any_dataset import DatasetData
    from cfmask.data.datamodule import DigitsData, TrainingData
    from cfmask.data.folder_data import FolderData
    from cfmask.data.shards import ShardData
    from cfmask.errors import InputError, UnreadableImage
    from cfmask.evaluation.metrics import Judged, Metric
    from cfmask.families.module import ModuleClassifier
    from cfmask.families.openclip import OpenClipClassifier
    from cfmask.families.saved import SavedClassifier
    from cfmask.families.timm import TimmClassifier
    from cfmask.images import Preprocess, RandomCrop
    from cfmask.inference.saved_answers import SavedAnswers
    from cfmask.merging.projection import tpgm
    from cfmask.merging.soups import greedy_soup, model_stock
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
    from cfmask.missingness.lime import LimeRelevance
    from cfmask.package_cam import PackageCAM
    from cfmask.relevance import (
        AttentionRelevance,
        AttentionRollout,
        GradCAM,
        GradientRelevance,
        HiResCAM,
        LayerCAM,
        Relevance,
    )
    from cfmask.reporting.report import ShiftReport
    from cfmask.saved_relevance import SavedRelevance, save_relevance
    from cfmask.shift import Request, Shift
    from cfmask.shifts.catalogue import SHIFTS, find_shifts
    from cfmask.shifts.own_sets import dataset_shift
    from cfmask.spec import Spec

# Module of each public name: what the imports above say, which only type checkers run.
_HOME = {
    alias.name: str(node.module)
    for block in ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    if isinstance(block, ast.If)
    for node in block.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = sorted(_HOME)


def names_in(room: str) -> list[str]:
    """Public classes of a folder of the package, none of them imported, but its base class."""
    inside = f"{__name__}.{room}."
    return [n for n in __all__ if _HOME[n].startswith(inside) and not _HOME[n].endswith(".base")]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
