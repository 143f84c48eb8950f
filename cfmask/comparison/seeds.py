"""Seeds: which runs are the same but for their seed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from cfmask.runs.run_folder import RunFolder, settings_of

# Last words of the names of settings that are seeds.
SEEDS = ("seed", "seed_everything")


def seed_groups(runs: Mapping[str, Path], rows: Mapping[str, str]) -> dict[str, list[str]]:
    """Rows of runs that differ by their seed alone, under a common name.

    Args:
        runs: folder of each run by its short name, with which its rows begin.
        rows: row of a tuned model, or of one between -> folder of its run.

    Returns:
        Common name -> rows, two or more: `masked: tuned` of `masked-0: tuned`, `masked-1: tuned`.
    """
    alike: dict[str, dict[str, str]] = {}
    for name, folder in runs.items():
        seeds, others = _settings(folder)
        alike.setdefault(others, {})[name] = seeds
    groups: dict[str, list[str]] = {}
    for names in alike.values():
        if len(set(names.values())) < 2:
            continue
        common = _common([*names])
        for row in rows:
            name, _, kind = row.rpartition(": ")
            if name in names:
                groups.setdefault(f"{common}: {kind}", []).append(row)
    return groups


def _settings(folder: Path) -> tuple[str, str]:
    """The seeds among the settings that make a training, and the other ones, as texts."""
    parts: tuple[list[str], list[str]] = ([], [])
    for key, value in sorted(settings_of(RunFolder(folder).config()).items()):
        parts[key.rpartition(".")[2] not in SEEDS].append(f"{key}: {value!r}")
    return "\n".join(parts[0]), "\n".join(parts[1])


def _common(names: list[str]) -> str:
    """What the names of runs begin with, or all of them."""
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names))
    begins = "".join(letters[0] for letters in shared).rstrip("-_. ")
    return begins.removesuffix("seed").rstrip("-_. ") or " + ".join(names)
