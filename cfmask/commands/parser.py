"""What all commands share: a parser whose errors are one line, a quiet log, one table."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import logging
import os
import re
import signal
import sys
import typing
import warnings
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

import cfmask
from cfmask.commands.blame import input_error, users_bug
from cfmask.commands.config_files import read_config, refuse_pipes, set_yaml_loader
from cfmask.commands.outline import in_two
from cfmask.internals import has_positionals, option_types
from cfmask.terminal import complain, fail, printing, say, show_table

if typing.TYPE_CHECKING:
    from cfmask.reporting.report import ShiftReport


class OneLineParser(ArgumentParser):
    """Parser whose errors are one line with the nearest names, and exit code 2.

    A yes-or-no option without a value means yes: `--resume` for `--resume true`. So does one of a
    part's own settings, whose types only the part knows: `--model.grad_checkpointing`.
    """

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """See `ArgumentParser.parse_args`."""
        words = [*(sys.argv[1:] if args is None else args), "--"]
        refuse_pipes(words)
        known = option_types(self)
        switches = {name: kind for name, kind in known.items() if _takes_bool(kind)}
        # Where there are positional arguments, a word that is no truth value is one of them.
        spaced = not has_positionals(self)
        bare = [
            f"{word}=true"
            if (word in switches and not _is_value(after, spaced or not _is_truth(switches[word])))
            or (_is_inner(word, known) and after.startswith("--"))
            else word
            for word, after in itertools.pairwise(words)
        ]
        return super().parse_args(bare, *more, **options)

    def parse_path(self, path: Any, *more: Any, **options: Any) -> Any:
        """See `ArgumentParser.parse_path`."""
        text = read_config(path)
        if text is None:
            return super().parse_path(path, *more, **options)
        return self.parse_string(text, os.path.basename(path), *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and exit; a bug in the user's own code is raised."""
        bug = users_bug(ex)
        if bug is not None:
            raise bug
        fail(_brief(message, {option.lstrip("-") for option in option_types(self)}))


def _is_inner(word: str, options: Container[str]) -> bool:
    """Whether a word names a setting of a part whose class is chosen on the same line."""
    part, dot, name = word.partition(".")
    chosen = dot and part in options and "=" not in word
    return bool(chosen) and word not in options and name != "help"


def _takes_bool(kind: Any) -> bool:
    """Whether an option of this type can be true."""
    return kind is bool or bool in typing.get_args(kind)


def _is_truth(kind: Any) -> bool:
    """Whether an option of this type can be nothing else but true, false or null."""
    return kind is bool or set(typing.get_args(kind)) == {bool, type(None)}


def _is_value(word: str, any_word: bool) -> bool:
    """Whether a word after a yes-or-no option is its value: a truth value, or any word."""
    truth = word.lower() in ("true", "false", "yes", "no", "null", "none")
    return truth or (any_word and word[:1] != "-")


def load_public_classes() -> None:
    """Import every public class: short names are known of imported classes alone."""
    for name in cfmask.__all__:
        getattr(cfmask, name)


set_yaml_loader()


@contextlib.contextmanager
def command(name: str, description: str | None, classes: bool = False) -> Iterator[OneLineParser]:
    """Context of a command: its parser; the log of libraries is quiet, errors are one line.

    Args:
        name: of the command, as it is typed.
        description: what it does, for `--help-all`.
        classes: whether options may name public classes by their short names.
    """
    quiet()
    with one_line_errors():
        if classes:
            load_public_classes()
        yield OneLineParser(prog=name, description=description)


def as_lists(args: Sequence[str], *options: str) -> list[str]:
    """Let one word be a list: `--shifts digits,folders` for `--shifts '["digits","folders"]'`.

    Args:
        args: a command line.
        options: those whose values are lists of names, with their dashes.
    """
    words = in_two(args, options)
    before = ["", *words]
    return [
        json.dumps(word.split(",")) if option in options and word[:1] not in ("[", "-") else word
        for option, word in zip(before, words)
    ]


def print_report(report: ShiftReport, folder: Path, metrics: Sequence[str] = ("accuracy",)) -> None:
    """Print the tables of a report and the folder that holds it."""
    for metric in metrics:
        shown = [report.table(metric), report.spread_table(metric)]
        for table in shown[:1] + [table for table in shown[1:] if table.rows]:
            show_table(table)
            say("")
    for table in report.front_tables():
        show_table(table)
        say("")
    say(f"Everything of this run is in {folder}/")


# Warnings of libraries that no user of these commands can act on.
ADVICE = (
    "does not have many workers",
    # A user's own number, which may be more than the cores where images come over a network.
    "Our suggested max number of worker",
    # Teachers and batch norm are in eval mode on purpose.
    "in eval mode at the start of training",
    # The loader can begin within an epoch; Lightning does not know how.
    "your dataloader is not resumable",
    # A run sets when it logs.
    "is smaller than the logging interval",
    # A run that goes on finds its own checkpoints.
    "Checkpoint directory .* exists and is not empty",
    # Lightning calls a function that torch has replaced.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def quiet() -> None:
    """Hide Lightning's advice on hardware and workers."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for advice in ADVICE:
        warnings.filterwarnings("ignore", f".*{advice}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """An InputError inside ends the process with its one line and exit code 2, Ctrl-C with 130."""
    with printing():
        try:
            yield
        except KeyboardInterrupt as error:
            complain("stopped by SIGINT")
            raise SystemExit(128 + signal.SIGINT) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            # Other workers end now too, and torch would raise the error again at any of them.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            fail(
                f"A process that reads images ended: {str(error).splitlines()[0].rstrip('.')}. "
                "Expected enough memory for all of them; give fewer workers, and go on with "
                "--resume true if this was training."
            )
        except OSError as error:
            cause = input_error(error)
            # Without the name of a file the line would be of no help.
            if cause is None and (error.filename is None or users_bug(error)):
                raise
            fail(str(cause or f"Cannot use {error.filename}: {error.strerror}."))
        except ValueError as error:
            cause = input_error(error)
            if cause is None:
                raise
            fail(str(cause))


# Phrases of jsonargparse, and plainer ones.
_WORDS = {
    r"<class '([\w.]+)'>": r"\1",
    r"a typing\.Literal\[([^\]]*)\]": r"one of \1",
    r"Expected a dot import path string: ": "Expected the name of a class, but got ",
    r"Expected an? (\w+)\. Got value: ": r"Expected \1, but got ",
}


def _brief(message: str, names: set[str]) -> str:
    """Jsonargparse's explanation as one line, with the nearest names."""
    noise = r"Does not validate|Subtypes:|Errors:|Given value|NoneType|either not accessible"
    lines = [re.sub(r"^[\s-]+", "", line) for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not re.search(noise, line))
    for theirs, ours in _WORDS.items():
        text = re.sub(theirs, ours, text)
    near = _nearest(text, names)
    return f"{text.rstrip('.')}. Nearest: {', '.join(near)}." if near else text


def _nearest(text: str, names: set[str]) -> list[str]:
    """Known options or classes nearest to the wrong name in a message."""
    wrong = re.search(r"(?:name of a class, but got |Option '|(arguments): -*)([\w.]+)", text)
    if not wrong:
        return []
    last = {name: name.split(".")[-1] for name in names if not name.endswith("+")}
    word, options = wrong[2].split(".")[-1], wrong[1] is not None
    if options and wrong[2].count("."):
        # In a group of settings, only its own are meant.
        group = wrong[2].rpartition(".")[0]
        last = {name: own for name, own in last.items() if name.startswith(f"{group}.")} or last
    known = set(cfmask.__all__) if word[0].isupper() else set(last.values())
    near = difflib.get_close_matches(word, sorted(known - {word}), n=3, cutoff=0.5)
    if not options:
        return near
    return [f"--{name}" for own in near for name in sorted(last) if last[name] == own][:3]
