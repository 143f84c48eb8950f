"""RunFolder: where a run keeps its config, weights, metrics, pictures and report."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from cfmask.checkpoint import AVERAGE, PRETRAINED, WEIGHTS, load_classifier, save_classifier
from cfmask.classifier import Classifier
from cfmask.errors import InputError
from cfmask.files import obstacle, read_json, read_text, read_yaml, write_text
from cfmask.runs import replacement
from cfmask.runs.marker import MARKER, is_marked, mark
from cfmask.runs.resume import checkpoints_of, leads, newest
from cfmask.runs.summary import SUMMARY

CONFIG = "config.yaml"
LOCK = ".lock"
HOLDER = ".holder"
SKIPPED = "skipped.txt"
# Settings that a run may change when it goes on: they do not touch the weights.
FREE = (
    "run",
    "baseline",
    "evaluation",
    "checkpoints",
    "skip_nonfinite",
    "data.init_args.workers",
    "logger",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.default_root_dir",
    "trainer.profiler",
)
# Where the images lie, which a cluster gives anew to every job.
ROOT = "data.init_args.root"


class RunFolder:
    """The folder of one run.

    Holds config.yaml, weights.safetensors (tuned), pretrained.safetensors (the starting point),
    average.safetensors (of the weights of all steps, if that is wanted), checkpoints/ (for going
    on), tensorboard/ and csv/metrics.csv, report.json and the pictures, and cfmask.json, which
    marks it. Whatever else lies there is never touched.

    Args:
        path: the folder; nothing is written before `held`.
        completed: settings, nested, to the YAML text of a config that has the others at their
            defaults.
    """

    def __init__(
        self, path: str | Path, completed: Callable[[dict[str, Any]], str] = yaml.safe_dump
    ) -> None:
        self.path = Path(path)
        self._completed = completed

    def check(self, config: str, overwrite: bool, resume: bool = False) -> bool:
        """Refuse a folder that holds another run, an unfinished or running one, or other files.

        A replacement that was killed is undone first, or ended if the newer run has a checkpoint.

        Args:
            config: the YAML text of the run that is to begin.
            overwrite: True allows to replace what is there.
            resume: True allows an unfinished run, if it has the same settings.

        Returns:
            Whether this very run lies there finished, and is not to be replaced.

        Raises:
            InputError: no folder can be there, or it holds files that are not a run's, another
                run's, or an unfinished run that is not to be resumed.
        """
        with self._writable():
            if not self._names():
                if why := obstacle(self.path):
                    raise OSError(why)
                return False
            if not self._is_ours():
                raise InputError(
                    f"Expected a new folder or a run folder, but {self.path} holds other files; "
                    "give another --run."
                )
        with self.held():
            self.settle()
        if overwrite:
            return False
        if self._has_weights() and not (self.path / CONFIG).is_file():
            raise InputError(
                f"Expected {CONFIG} with the run in {self.path}, but it is gone; put it back, or "
                "start again with --overwrite true."
            )
        if self.is_finished(config, resume):
            return True
        if not resume and self.checkpoints():
            raise InputError(
                f"{self.path} holds an unfinished run; go on with --resume true, or start again "
                "with --overwrite true."
            )
        return False

    def is_finished(self, config: str, resume: bool = False) -> bool:
        """Whether the run of these settings lies here with its weights.

        Args:
            config: the YAML text of the run that is to begin.
            resume: True lets the images of an unfinished run have moved; that they are the same
                is seen when they are read.

        Raises:
            InputError: a run of other settings lies here.
        """
        if not (self.path / CONFIG).is_file():
            return False
        there, here = settings_of(self.config()), settings_of(yaml.safe_load(config))
        if here.keys() - there.keys() and all(here.get(key) == there[key] for key in there):
            # Of an older version, which had fewer settings.
            there = settings_of(yaml.safe_load(self._completed(_nested(there))))
        finished = (self.path / WEIGHTS).is_file()
        if resume and not finished and ROOT in there and is_marked(self.path):
            there[ROOT] = here.get(ROOT)
        other = _difference(there, here)
        if other:
            raise InputError(
                f"{self.path} holds a run of another config ({other}); give another --run, or "
                "--overwrite true."
            )
        return finished

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other runs, until the context or the process ends.

        Raises:
            InputError: another process runs here, or nothing can be written here.
        """
        if not leads():
            yield
            return
        lock, holder = FileLock(self.path / LOCK, timeout=0), self.path / HOLDER
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                # The system frees it when the process dies, also by SIGKILL.
                lock.acquire()
            except Timeout as error:
                name = read_text(holder) if holder.is_file() else "another process"
                raise InputError(
                    f"Expected no other run in {self.path}, but {name} is at work there; wait for "
                    "it, or give another --run."
                ) from error
            write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            lock.release()

    @rank_zero_only
    def start(
        self, config: str, classifier: Classifier, images: Mapping[str, Any] | None = None
    ) -> None:
        """Put aside what an older run left, then write the marker, the start and the config.

        Args:
            config: the YAML text of the settings.
            classifier: the starting point.
            images: identity of the training images; see `TrainingData.identity`.
        """
        if replacement.written(self.path):
            if not is_marked(self.path):
                mark(self.path)
            replacement.put_aside(self.path)
        mark(self.path)
        save_classifier(classifier, self.path / PRETRAINED)
        mark(self.path, images)
        self.keep_config(config)

    @rank_zero_only
    def keep_config(self, config: str) -> None:
        """Write the YAML text of the run's settings."""
        write_text(self.path / CONFIG, config)

    @rank_zero_only
    def settle(self) -> None:
        """End a replacement: the newer run stays if it has a checkpoint, or gives way.

        Half-written files of a killed run are deleted, except those of others, such as reports.
        """
        replacement.remove(replacement.unfinished(self.path, ["checkpoints"]), self.path)
        if (self.path / (MARKER + replacement.ASIDE)).exists() and self._has_weights():
            replacement.drop_aside(self.path)
        else:
            replacement.bring_back(self.path)

    @rank_zero_only
    def drop_replaced(self) -> None:
        """Delete the run that was put aside, now that this one has a checkpoint."""
        if self._has_weights():
            replacement.drop_aside(self.path)

    @rank_zero_only
    def clear_unless_trained(self) -> None:
        """Undo the beginning of a run that ended before its first checkpoint."""
        if self._has_weights():
            return
        if replacement.aside(self.path):
            self.settle()
            return
        names = [self.path / LOCK, self.path / HOLDER]
        replacement.remove([*replacement.written(self.path), *names], self.path)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def others(self) -> list[str]:
        """Names of the files and folders here that no run wrote."""
        return [name for name in replacement.others(self.path) if name not in (LOCK, HOLDER)]

    def checkpoints(self) -> list[Path]:
        """Files from which the run could go on, whole or not."""
        return sorted(checkpoints_of(self.path).glob("*.ckpt"))

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; see `cfmask.runs.resume.newest`."""
        return newest(checkpoints_of(self.path))

    def finish(
        self, trained: Classifier | None = None, average: Classifier | None = None
    ) -> Classifier:
        """Write weights.safetensors, which makes the run a finished one, and give the classifier.

        Args:
            trained: the weights; None takes those of the best epoch, or of the end if no epoch was
                validated.
            average: of the weights of all steps, to lie beside them.
        """
        if average is not None:
            save_classifier(average, self.path / AVERAGE)
        if trained is None:
            best = checkpoints_of(self.path) / "best.ckpt"
            found = best if best.is_file() else self.newest()
            if found is None:
                raise InputError(
                    f"Expected a whole checkpoint in {self.path}, but there is none left."
                )
            trained = load_classifier(found)
        save_classifier(trained, self.path / WEIGHTS)
        return trained

    def note_skipped(self, images: list[str]) -> None:
        """Write the lines about training images that could not be read, if there are any."""
        if images:
            write_text(self.path / SKIPPED, "\n".join(images) + "\n")

    def skipped(self) -> list[str]:
        """The lines that `note_skipped` wrote; empty if there are none."""
        file = self.path / SKIPPED
        return read_text(file).splitlines() if file.is_file() else []

    def precision(self) -> str | None:
        """The precision in which an unfinished run began; None if there is none to go on with."""
        with contextlib.suppress(InputError, KeyError, TypeError):
            if self.checkpoints():
                return str(read_json(self.path / SUMMARY)["precision"])
        return None

    def config(self) -> dict[str, Any]:
        """The run's configuration.

        Raises:
            InputError: not a run folder, or a config that is no YAML of settings.
        """
        file = self.path / CONFIG
        if not file.is_file():
            raise InputError(f"Expected a run folder with {CONFIG}, but got {self.path}.")
        content = read_yaml(file)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise InputError(f"Expected settings by name in {file}, but it holds none.")
        return content

    def _names(self) -> list[str]:
        """Names in the folder, without the lock; none if the folder does not exist."""
        if not self.path.exists():
            return []
        return sorted({path.name for path in self.path.iterdir()} - {LOCK, HOLDER})

    def _is_ours(self) -> bool:
        """Whether this project made the folder; older versions left no marker."""
        start, aside = self.path / PRETRAINED, self.path / (MARKER + replacement.ASIDE)
        marked = is_marked(self.path) or aside.is_file()
        return marked or (start.is_file() and (self.path / CONFIG).is_file())

    def _has_weights(self) -> bool:
        """Whether there is a checkpoint, or the weights of a finished run."""
        return bool(self.checkpoints()) or (self.path / WEIGHTS).is_file()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """Context of the first touch of the folder, in which its path may turn out unusable."""
        line = f"Expected --run to be a folder to write to, but {self.path}"
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{line} is a file; give another --run.")
            if self.path.is_symlink() and not self.path.exists():
                raise InputError(f"{line} is a link to nothing; mend it, or give another --run.")
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{line} cannot be: {reason}; give another --run.") from error


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that make the training, flat: `a.b.c` -> value."""
    free = tuple(f"{name}." for name in FREE)
    return {key: value for key, value in _flat(config) if not f"{key}.".startswith(free)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `_flat` has made flat."""
    root: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        inner = root
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return root


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first settings in which two runs differ, in words."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    texts = [f"{key} is {old.get(key)} there and {new.get(key)} here" for key in keys[:2]]
    return "; ".join(texts) + (f"; and {len(keys) - 2} more" if len(keys) > 2 else "")
