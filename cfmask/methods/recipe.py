"""Recipe: the arguments that all methods share, for constructors that hand them on."""

from __future__ import annotations

from typing import TypedDict

from cfmask.methods.encoders import Compiled


class Recipe(TypedDict, total=False):
    """What `Method` takes beside the classifier, for `**recipe: Unpack[Recipe]`."""

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    task_weight: float
    compile: Compiled
    grad_checkpointing: bool
    cycle_momentum: bool
    label_smoothing: float
    mixup: float
    cutmix: float
    layer_decay: float
    head_lr: float | None
    upper_blocks: int | None
    fixed_head: bool
