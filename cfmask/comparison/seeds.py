"""Seeds: which runs are the same but for their seed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from cfmask.runs.run_folder import RunFolder, settings_of

# Last words of the names of settings that are seeds.
SEEDS = ("seed", "seed_everything")


def families(runs: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Which runs differ by their seed alone.

    Args:
        runs: folder of each run by its short name.

    Returns:
        Name of a run -> the name that it shares with those, or its own, and its seeds as a text.
    """
    alike: dict[str, dict[str, str]] = {}
    for name, folder in runs.items():
        seeds, others = _settings(folder)
        alike.setdefault(others, {})[name] = seeds
    found: dict[str, tuple[str, str]] = {}
    for names in alike.values():
        several = len(set(names.values())) > 1
        common = _common([*names]) if several else ""
        if common in {*runs, *(other for other, _ in found.values())}:
            common = " + ".join(names)
        for name, seeds in names.items():
            again = [*names.values()].count(seeds) > 1
            found[name] = common or name, f"{seeds} ({name})" if again else seeds
    return found


def seed_groups(
    known: Mapping[str, tuple[str, str]], rows: Mapping[str, str]
) -> dict[str, list[str]]:
    """Rows of runs that differ by their seed alone, under a common name.

    Args:
        known: what `families` says of the runs, by the names with which their rows begin.
        rows: row of a tuned model, or of one between -> folder of its run.

    Returns:
        Common name -> rows, two or more: `masked: tuned` of `masked-0: tuned`, `masked-1: tuned`.
    """
    groups: dict[str, list[str]] = {}
    for row in rows:
        name, _, kind = row.rpartition(": ")
        if name in known:
            groups.setdefault(f"{known[name][0]}: {kind}", []).append(row)
    return {common: own for common, own in groups.items() if len(own) > 1}


def _settings(folder: Path) -> tuple[str, str]:
    """The seeds among the settings that make a training, and the other ones, as texts."""
    parts: tuple[list[str], list[str]] = ([], [])
    for key, value in sorted(settings_of(RunFolder(folder).config()).items()):
        parts[key.rpartition(".")[2] not in SEEDS].append(f"{key}: {value!r}")
    return "\n".join(parts[0]), "\n".join(parts[1])


def _common(names: list[str]) -> str:
    """The common beginning of the names of runs, or all names if there is none."""
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names))
    begins = "".join(letters[0] for letters in shared).rstrip("-_. ")
    return begins.removesuffix("seed").rstrip("-_. ") or " + ".join(names)
