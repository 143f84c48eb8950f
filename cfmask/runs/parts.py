"""Parts of a run: its masks, relevance and data, built again from its config.

The config is data (see `cfmask.trust`): only classes are built that may be, with arguments of the
types that their constructors name.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cfmask.counterfactual import Counterfactual
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.relevance import Relevance
from cfmask.runs.run_folder import CONFIG, RunFolder
from cfmask.trust import find_class
from cfmask.typed_json import Misfit, Typed


@dataclass(frozen=True)
class Masking:
    """How a run makes its counterfactual images.

    Attributes:
        relevance: None if the run uses the default of its method.
        counterfactuals: masks and fills; none if the run does not mask.
    """

    relevance: Relevance | None = None
    counterfactuals: tuple[Counterfactual, ...] = ()


def masking_of(run: RunFolder, trust: bool = False) -> Masking:
    """Relevance, masks and fills of a run.

    Args:
        run: the folder.
        trust: import the classes that its config names; see `cfmask.trust.find_class`.

    Raises:
        InputError: a damaged config, or a class that may not be imported.
    """
    config, source = _section(run, "model"), run.path / CONFIG
    given = config.get("counterfactual")
    several = given if isinstance(given, list) else [given] if given else []
    relevance = config.get("relevance")
    return Masking(
        built(relevance, Relevance, source, trust) if relevance else None,
        tuple(built(one, Counterfactual, source, trust) for one in several),
    )


def training_data_of(run: RunFolder, trust: bool = False) -> TrainingData:
    """The training data of a run, on this machine's disk, without its augmentation.

    Args:
        run: the folder.
        trust: see `masking_of`; also fetch data that the config names by URL.

    Raises:
        InputError: see `masking_of`; the data are not there.
    """
    source = run.path / CONFIG
    config = _section(run, "data", of=None)
    urls = [text for text in _texts(config) if "://" in text]
    if urls and not trust:
        raise InputError(
            f"Refused {source}: its data would be fetched from {urls[0]}; give --trust true if you "
            "know who made it."
        )
    init = config.get("init_args")
    if isinstance(init, dict):
        # Its transforms may be of any class; pictures are shown as they are.
        plain = {name: value for name, value in init.items() if name != "augmentation"}
        config = {**config, "init_args": plain}
    data: TrainingData = built(config, TrainingData, source, trust)
    return data


def _section(run: RunFolder, name: str, of: str | None = "init_args") -> dict[str, Any]:
    """Settings of a part of a run, or of what they hold."""
    found: Any = run.config().get(name)
    found = found.get(of) if of and isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise InputError(f"Expected settings of {name} in {run.path / CONFIG}, but there are none.")
    return found


def built(value: Any, base: type, source: Path, trust: bool = False) -> Any:
    """An object that a config describes by `class_path` and `init_args`.

    Args:
        value: the description, or the class's name alone; arguments are described alike.
        base: what the class must be a subclass of.
        source: where it stands, for messages.
        trust: see `cfmask.trust.find_class`.

    Raises:
        InputError: no such description, a class that may not be imported, arguments that its
            constructor does not take or that are of another type.
    """
    whole = value if isinstance(value, dict) else {"class_path": value}
    name, init = whole.get("class_path"), whole.get("init_args") or {}
    if not isinstance(name, str) or not isinstance(init, dict):
        raise InputError(
            f"Expected a {base.__name__} by class_path in {source}, but got {value!r:.80}."
        )
    kind = find_class(name, base, source, trust)
    hints, given = get_type_hints(kind.__init__), {}
    typed = Typed(make=lambda inner, base: built(inner, base, source, trust))
    for key, item in init.items():
        try:
            given[key] = typed(item, hints.get(key, Any), key)
        except Misfit as error:
            raise InputError(
                f"Expected {hints[key]} as {key} of {name} in {source}, but got {item!r:.80}."
            ) from error
    try:
        inspect.signature(kind).bind(**given)
    except TypeError as error:
        raise InputError(f"Cannot build {name} as {source} says: {error}.") from error
    return kind(**given)


def _texts(value: Any) -> list[str]:
    """All texts in plain lists and dicts."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for item in inner for text in _texts(item)]
    return [value] if isinstance(value, str) else []
