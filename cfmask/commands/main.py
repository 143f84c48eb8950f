"""The command cfmask: its first word names what is to be done."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cfmask.commands.outline import checked, help_text
from cfmask.commands.train_words import brief_help, prepared
from cfmask.errors import InputError, unknown
from cfmask.terminal import fail, printing, say
from cfmask.version import __version__

# Lists all options with their types.
HELP_ALL = "--help-all"
# Name of a command -> module, function and what it does.
COMMANDS = {
    "train": ("train_model", "train", "fine-tune a model, then evaluate it under shift"),
    "eval": ("eval_models", "evaluate_run", "evaluate models under shift"),
    "check": (
        "check_sets",
        "check_data",
        "say which image sets are there, and what is wrong with them",
    ),
    "show": ("show_images", "show_images", "draw relevance, masks and counterfactuals of pictures"),
    "missingness": (
        "measure_missingness",
        "measure_missingness",
        "say what models answer when parts of images are hidden",
    ),
    "explain": (
        "explain_images",
        "explain_images",
        "draw what speaks for the class of pictures",
    ),
    "predict": ("predict_images", "predict_images", "name the likeliest classes of pictures"),
    "export": ("export_model", "export_run", "write a run's model in another tool's format"),
    "merge": ("merge_models", "merge_models", "make one model of several runs after training"),
    "refit": (
        "refit_head",
        "refit_head",
        "fit the last layer of a model anew, to curated images, and judge both",
    ),
    "compare": (
        "compare_plan",
        "compare_plan",
        "train methods by settings and seeds as a plan says, and report",
    ),
    "pack": ("pack_images", "pack_images", "pack an image folder into shards, or verify them"),
    "contexts": ("convert_contexts", "convert_contexts", "list MetaShift's images by context"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one of `COMMANDS`: the whole of ``cfmask``.

    Args:
        args: command line without the program; the process's own by default.
    """
    with printing():
        _run(sys.argv[1:] if args is None else list(args))


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
    elif words[0] == "--version":
        say(f"cfmask {__version__}")
    elif words[0] not in COMMANDS:
        fail(unknown("command", words[0], COMMANDS))
    else:
        _command(words[0], words[1:])


def _command(name: str, words: list[str]) -> None:
    """Run a command; help and typos are answered before torch is imported."""
    try:
        os.getcwd()
    except FileNotFoundError:
        fail("The folder in which this runs has been deleted; go to another.")
    module, function, what = COMMANDS[name]
    if name == "eval" and "--check" in words:
        module, _, what = COMMANDS["check"]
    training = name == "train"
    if {"-h", "--help"} & set(words):
        print(brief_help() if training else help_text(name, module, what))
        raise SystemExit
    try:
        if training:
            prepared(words)
        else:
            words = checked(name, module, words)
    except InputError as error:
        fail(error)
    # Threads that spin while they wait keep cores from other programs; read by torch's import.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    _keep_freed_memory()
    module, function, _ = COMMANDS[name]
    called = ["--help" if word == HELP_ALL and not training else word for word in words]
    getattr(import_module(f"cfmask.commands.{module}"), function)(called)


def _keep_freed_memory() -> None:
    """Keep the buffers of a step for the next one.

    The GNU C library gives large ones back, and the system clears and maps them anew at every step:
    a fifth of the time of a CNN on a CPU. Other libraries have no such switch.
    """
    switch = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if switch is not None:
        trim_threshold, mmap_max = -1, -4
        switch(mmap_max, 0)
        switch(trim_threshold, -1)


def _usage() -> str:
    lines = [f"  {name:<12}{what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cfmask COMMAND [OPTION ...]",
            "",
            "Robust fine-tuning of image encoders, and their evaluation under shift.",
            "",
            *lines,
            "",
            "cfmask COMMAND --help lists the options of a command.",
        ]
    )
