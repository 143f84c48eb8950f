"""Signatures of constructors that hand on some of their arguments to their parent's."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, get_type_hints


def spell_out(kind: type) -> None:
    """Show the arguments that a constructor hands on as `**name`, with their types and defaults.

    Help, config files and an editor's notebook read them from the signature.
    """
    own = kind.__dict__.get("__init__")
    if own is None:
        return
    *given, last = inspect.signature(own).parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return
    names = {argument.name for argument in given}
    parent = kind.__mro__[1].__init__  # type: ignore[misc]
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
    own.__annotations__ |= {argument.name: argument.annotation for argument in handed}
