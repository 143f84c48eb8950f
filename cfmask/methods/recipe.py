"""Recipe: the arguments that all methods share, for constructors that hand them on."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, TypedDict, get_type_hints

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


def spell_out(method: type) -> None:
    """Show the arguments that a constructor hands on as `**recipe`, with their types and defaults.

    Help, config files and an editor's notebook read them from the signature.
    """
    own = method.__dict__.get("__init__")
    if own is None:
        return
    *given, last = inspect.signature(own).parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return
    names = {argument.name for argument in given}
    parent = method.__mro__[1].__init__  # type: ignore[misc]
    types: dict[str, Any] = {}
    # The words of an annotation mean something in the parent's file alone.
    with contextlib.suppress(NameError):
        types = get_type_hints(parent)
    handed = [
        argument.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            annotation=types.get(argument.name, argument.annotation),
        )
        for argument in inspect.signature(parent).parameters.values()
        if argument.name not in names and argument.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    own.__signature__ = inspect.Signature([*given, *handed])
