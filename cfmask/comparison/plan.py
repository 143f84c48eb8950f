"""Plan: methods by settings by seeds, of a YAML file -> command lines of cfmask train."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfmask.errors import InputError
from cfmask.files import read_yaml
from cfmask.typed_json import Misfit, Typed

Options = dict[str, Any]
# What the plan itself says of every run.
OWN = ("run", "seed", "resume", "overwrite", "baseline")
CURVE = {"wise": "0,0.1,...,1", "pictures": 0}
NO_CURVE = {"wise": [], "pictures": 0}


@dataclass(frozen=True)
class Run:
    """One training of a plan.

    Attributes:
        method: its name in the plan.
        setting: place of its setting, from 0.
        seed: of the run.
        folder: of the run.
        words: what follows `cfmask train`.
    """

    method: str
    setting: int
    seed: int
    folder: Path
    words: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is compared. Options are those of `cfmask train`, by name without dashes.

    Attributes:
        out: folder of all runs and of the report.
        methods: name -> options of the method; `settings` among them stands for the plan's own.
        seeds: of the runs that are reported.
        train: options of every run. `{seed}` in a text stands for the seed of the run.
        settings: options of each setting, the same number for every method.
        tuning_seeds: on which the setting is chosen, without the curve, which is not reported;
            none chooses on `seeds`.
        against: methods with which alone the others are compared; none compares each two.
        evaluation: settings of the evaluation, of every run and of the report.
        slurm: parameters of the jobs, as submitit's `update_parameters` takes them.
    """

    out: str
    methods: dict[str, dict[str, Any]]
    seeds: list[int]
    train: Options = field(default_factory=dict)
    settings: list[Options] = field(default_factory=lambda: [{}])
    tuning_seeds: list[int] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    evaluation: Options = field(default_factory=dict)
    slurm: Options = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan of a YAML file.

        Raises:
            InputError: no such file, or no plan; the first thing that is wrong is named.
        """
        try:
            plan: Plan = Typed()(read_yaml(path), cls, "the plan")
        except Misfit as error:
            raise InputError(f"Expected a plan in {path}, but {error}.") from error
        wrong = next(plan._faults(), None)
        if wrong:
            raise InputError(f"Expected {wrong} in {path}.")
        return plan

    @property
    def count(self) -> int:
        """Number of settings of each method."""
        return len(next(self._settings()))

    @property
    def evaluated(self) -> Options:
        """Settings of the evaluation, with the whole curve."""
        return CURVE | self.evaluation

    def tuning(self) -> list[Run]:
        """The runs by which the settings are chosen; none where there is one setting."""
        seeds = self.tuning_seeds or self.seeds
        settings = range(self.count) if self.count > 1 else ()
        return [self.run(m, k, seed) for m in self.methods for k in settings for seed in seeds]

    def reported(self, chosen: Mapping[str, int]) -> list[Run]:
        """The runs of the chosen setting of each method."""
        return [self.run(m, chosen[m], seed) for m in self.methods for seed in self.seeds]

    def run(self, method: str, setting: int, seed: int) -> Run:
        """One run."""
        options = {**self.methods[method]}
        settings = options.pop("settings", self.settings)
        asked = self.evaluation | NO_CURVE if seed in self.tuning_seeds else self.evaluated
        evaluation = {f"evaluation.{name}": value for name, value in asked.items()}
        name = self.name(method, setting)
        folder = Path(self.out) / "runs" / f"{name}-{seed}"
        last = {"seed": seed, "run": str(folder), "resume": True, "baseline": False}
        every = {**self.train, **options, **settings[setting], **evaluation, **last}
        words = [word for k, v in every.items() for word in (f"--{k}", _text(v, seed))]
        return Run(method, setting, seed, folder, tuple(words))

    def name(self, method: str, setting: int) -> str:
        """Common name of the runs of a setting."""
        return f"{_slug(method)}-{setting + 1}" if self.count > 1 else _slug(method)

    def _settings(self) -> Iterator[list[Any]]:
        return (options.get("settings", self.settings) for options in self.methods.values())

    def _faults(self) -> Iterator[str]:
        """What is expected of the plan and is not so."""
        if not self.methods or not self.seeds:
            yield "at least one method and one seed"
        for seeds in (self.seeds, self.tuning_seeds):
            if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
                yield f"seeds that differ and are at least 0, not {seeds},"
        both = sorted(set(self.seeds) & set(self.tuning_seeds))
        if both:
            yield f"tuning seeds that are not reported, but {both[0]} is,"
        slugs = [_slug(name) for name in self.methods]
        if len(set(slugs)) < len(slugs) or "" in slugs:
            yield f"methods whose names differ in letters or digits, not {', '.join(self.methods)},"
        for name, settings in zip(self.methods, self._settings()):
            if not isinstance(settings, list) or not all(isinstance(s, dict) for s in settings):
                yield f"a list of options as the settings of {name}"
                return
        missing = [name for name in self.against if name not in self.methods]
        if missing:
            yield f"methods of the plan to compare with, but {missing[0]} is none,"
        counts = {name: len(s) for name, s in zip(self.methods, self._settings())}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            said = ", ".join(f"{name} has {count}" for name, count in counts.items())
            yield f"the same number of settings for each method, at least one, but {said},"
        groups = [self.train, *self.methods.values(), *self.settings]
        taken = [name for options in groups for name in options if name in OWN]
        if taken:
            yield f"no option {taken[0]}, which the plan itself gives to each run,"


def _slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^\w.=+]+", "-", name).strip("-.").lower()


def _text(value: Any, seed: int) -> str:
    """A value as a word of a command line."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    return json.dumps(value)
