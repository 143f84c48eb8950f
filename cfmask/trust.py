"""Trust: which code may be named by files from elsewhere.

Weights files and run folders name classes by import path. They are data: reading them runs no code
but what is there already, the classes of this package and those whose module the process has
imported, since the user's own program or command names it. Other modules are imported only if the
user trusts the file, and then too never from beside it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from cfmask.errors import InputError, unknown

PACKAGE = __name__.partition(".")[0]


def class_path(kind: type) -> str:
    """Import path of a class; `cfmask.Name` for this package's own, wherever they lie in it."""
    module = kind.__module__
    return f"{PACKAGE if is_own(module) else module}.{kind.__qualname__}"


def find_class(path: str, base: type, source: Path, trust: bool = False) -> Any:
    """The class that a file names by its import path.

    Args:
        path: `module.Class`; the bare name of one of this package's, or of a class that is there.
        base: what it must be a subclass of.
        source: the file or folder, for messages; modules that lie beside it are never imported.
        trust: import modules that the process has not imported yet.

    Raises:
        InputError: a class that may not be imported, is not there, or is not a `base`.
    """
    module = path.rpartition(".")[0]
    if not module:
        return _by_name(path, base)
    if trust or is_own(module):
        _import(module, path, source)
    found = _loaded(path)
    if found is None and _loaded(module) is None:
        raise InputError(
            f"Refused {source}: it names the class {path}, which is not one of {PACKAGE}'s and not "
            "imported here. If you know who made it, give --trust true (trust=True in Python), or "
            "import its module first."
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"Expected {source} to name a {base.__name__}, but {path} is none.")
    return found


# The file that is being read, and whether it is trusted; None while the user's own program asks.
_READING: ContextVar[tuple[Path, bool] | None] = ContextVar("reading", default=None)
# What the user's own program or command has named.
_NAMED: set[str] = set()


@contextlib.contextmanager
def reading(source: Path, trust: bool) -> Iterator[None]:
    """Context in which import paths come from a file, with the user's trust or without."""
    token = _READING.set((source, trust))
    try:
        yield
    finally:
        _READING.reset(token)


def is_path(name: str) -> bool:
    """Whether a name is an import path, `module.name`."""
    *modules, _ = parts = name.split(".")
    return bool(modules) and all(part.isidentifier() for part in parts)


def find_callable(path: str, base: type | None = None) -> Any:
    """What an import path names: a class or function; see `find_named`.

    Args:
        path: `module.name`.
        base: of the classes that a file may name without trust, if the process has imported them.
            Else it may name what the user's own program or command has named, and nothing more:
            much that is imported does harm when it is called.

    Raises:
        InputError: there is none, or it may not be called.
    """
    found, file = find_named(path), _READING.get()
    if file and not file[1] and path not in _NAMED:
        known = base is not None and isinstance(found, type) and issubclass(found, base)
        found = found if known else None
    if not callable(found):
        raise InputError(
            f"Expected {path} to be the import path of a class or function, but it is none that is "
            "imported here; import its module first, or give --trust true for a file that you know."
        )
    return found


def find_named(path: str) -> Any:
    """What an import path names, `module.name`; None if the module has no such name.

    Modules are looked for in the working folder too, after all other places. While a file is read,
    untrusted modules are not imported, and none from beside the file.

    Raises:
        InputError: there is no such module. An error inside of the module is raised as it is.
    """
    module, file = path.rpartition(".")[0], _READING.get()
    if file and file[1]:
        _import(module, path, file[0])
    elif module and not file:
        try:
            with also_from_here():
                import_module(module)
        except ModuleNotFoundError as error:
            # What the module itself fails to import is its own fault.
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise InputError(f"Cannot import {path}: {error}.") from error
        _NAMED.add(path)
    return _loaded(path)


def import_trusted(path: str, source: Path) -> None:
    """Import the module of what a trusted file names, but never from beside that file.

    Raises:
        InputError: there is no such module elsewhere.
    """
    _import(path.rpartition(".")[0], path, source)


@contextlib.contextmanager
def also_from_here() -> Iterator[None]:
    """Context in which modules are looked for in the working folder, after all other places."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        # The first of two equal entries is not ours; a module may have changed the list.
        for at in [k for k, entry in enumerate(sys.path) if entry == here][-1:]:
            del sys.path[at]


def _by_name(name: str, base: type) -> Any:
    """The subclass of this bare name that is public here, or that has been defined."""
    package = sys.modules[PACKAGE]
    public = getattr(package, "__all__", [])
    found = getattr(package, name) if name in public else None
    defined = {kind.__name__: kind for kind in _subclasses(base)}
    if isinstance(found, type) and issubclass(found, base):
        return found
    if name not in defined:
        known = [n for n in public if n.endswith(base.__name__)]
        raise unknown(f"kind of {base.__name__}", name, {*known, *defined} - {base.__name__})
    return defined[name]


def _subclasses(base: Any) -> list[Any]:
    return [s for child in base.__subclasses__() for s in (child, *_subclasses(child))]


def is_own(module: str) -> bool:
    """Whether an import path leads into this package."""
    return module.partition(".")[0] == PACKAGE


def _loaded(path: str) -> Any:
    """What has this path in the modules that the process has imported; None if nothing."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        found: Any = sys.modules.get(".".join(names[:end]))
        if found is not None:
            for name in names[end:]:
                found = getattr(found, name, None)
            return found
    return None


def _import(module: str, path: str, source: Path) -> None:
    """Import the module of a class path, which may name a class inside of a class."""
    while module and module not in sys.modules:
        try:
            with _not_from_beside(source):
                import_module(module)
        except ModuleNotFoundError as error:
            parent = module.rpartition(".")[0]
            if error.name != module or not parent:
                raise InputError(
                    f"Cannot import {path} that {source} names: {error}. Modules beside "
                    "the file are not looked at."
                ) from error
            module = parent


@contextlib.contextmanager
def _not_from_beside(source: Path) -> Iterator[None]:
    """Context in which modules are not looked for in the folder of a file or of its run."""
    folder = (source if source.is_dir() else source.parent).resolve()
    if folder.name == "checkpoints":
        folder = folder.parent
    before = list(sys.path)
    sys.path[:] = [p for p in before if not Path(p).resolve().is_relative_to(folder)]
    try:
        yield
    finally:
        sys.path[:] = before
