"""The configurations that come with the package, by their short names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cfmask.commands.outline import in_two
from cfmask.errors import InputError, unknown

OPTIONS = ("--config", "-c")


def shipped_configs() -> dict[str, Path]:
    """Path of every configuration by its name, such as `demo` or `imagenet/vit_b32`.

    They lie in the installed package, or beside it in a checkout.
    """
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")
    folder = next((folder for folder in folders if (folder / "demo.yaml").is_file()), folders[0])
    paths = sorted(folder.rglob("*.yaml"))
    return {str(path.relative_to(folder).with_suffix("")): path for path in paths}


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """A command line in which names of shipped configurations are replaced by their paths.

    A file of that name goes first, a folder does not. With `configs/` before it or `.yaml` after
    it, a name is known too, so that the commands of the documentation also run outside of a
    checkout.

    Args:
        args: the words of a command line.

    Raises:
        InputError: `--config` with a folder, or with a plain word that is neither a file nor
            shipped.
    """
    words = in_two(args, OPTIONS)
    before = ["", *words]
    return [_path(word) if option in OPTIONS else word for option, word in zip(before, words)]


def _path(word: str) -> str:
    is_folder = Path(word).is_dir()
    if (Path(word).exists() and not is_folder) or not re.fullmatch(r"[\w/.-]+", word):
        return word
    known = shipped_configs()
    name = word.removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return str(known[name])
    if is_folder:
        raise InputError(
            f"Expected a configuration file, but {word} is a folder; that of a run is "
            f"{Path(word) / 'config.yaml'}."
        )
    if Path(word).suffix:
        return word
    raise unknown("config", word, known)
