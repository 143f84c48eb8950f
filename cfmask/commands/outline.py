"""Outline of a command: its arguments, read from the source text.

So help and typos are answered at once: to import what a command calls takes seconds.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfmask.errors import InputError, no_option

PACKAGE = Path(__file__).parents[1]
WIDTH, INDENT = 80, 26


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
        name: `--option`, or the name of a positional argument.
        words: its help.
        default: as Python source; empty if there is none.
        kind: its type as Python source; empty if unknown.
    """

    name: str
    words: str
    default: str = ""
    kind: str = ""


def arguments(command: str) -> list[Argument]:
    """The arguments of a command, in the order of its parser.

    Args:
        command: name of its module in `cfmask.commands`.
    """
    tree = ast.parse((PACKAGE / "commands" / f"{command}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: call.lineno)
    return [argument for call in calls for argument in _given(call, tree)]


def help_text(name: str, command: str, what: str) -> str:
    """What ``cfmask NAME --help`` prints."""
    taken = arguments(command)
    alone = [argument for argument in taken if not argument.name.startswith("-")]
    options = [argument for argument in taken if argument.name.startswith("-")]
    words = [argument.name.upper() for argument in alone]
    usage = " ".join(["usage: cfmask", name, *words, "[OPTION ...]"])
    lines = [usage, "", f"{what[:1].upper()}{what[1:]}.", ""]
    for argument in (*alone, *options):
        default = f" [{argument.default}]" if argument.default else ""
        shown = argument.name if argument in options else argument.name.upper()
        lines += help_lines(shown, argument.words.rstrip(".") + default)
    classes = [a.name for a in options if re.match(r"(Relevance|PatchMask|Fill)\b", a.kind)]
    if classes:
        lines += ["", f"Settings of a class: {' '.join(f'{n}.help NAME' for n in classes)}"]
    return "\n".join([*lines, "", "All types: --help-all"])


def checked(name: str, command: str, words: Sequence[str]) -> list[str]:
    """A command line, checked: its options are known and its first files exist.

    Args:
        name: of the command.
        command: name of its module in `cfmask.commands`.
        words: the command line after the name. Dashes in options may stand for underscores.

    Raises:
        InputError: an unknown option, or a file that does not exist.
    """
    taken = arguments(command)
    known = [argument.name for argument in taken if argument.name.startswith("--")]
    made = [_spelled(word, known) for word in words]
    for word in made:
        option = word.partition("=")[0].partition(".")[0].rstrip("+")
        # Parsers allow the beginning of an option too.
        unknown = not any(name.startswith(option) for name in (*known, "--help", "--help-all"))
        if word.startswith("--") and word != "--" and unknown:
            raise no_option(option, known, f"cfmask {name} --help")
    alone = [argument for argument in taken if not argument.name.startswith("-")]
    first = next((k for k, word in enumerate(made) if word.startswith("-")), len(made))
    for k, word in enumerate(made[:first] if alone else []):
        # With a colon it is the name of a published model, or an address.
        if ":" not in word and not Path(word).exists():
            what = alone[min(k, len(alone) - 1)].words
            raise InputError(f"Expected {what}; but {word} does not exist.")
    return made


def _spelled(word: str, known: Sequence[str]) -> str:
    option, is_set, value = word.partition("=")
    spelled = f"--{option.removeprefix('--').replace('-', '_')}"
    return f"{spelled}{is_set}{value}" if option[:2] == "--" and spelled in known else word


def in_two(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line with `--option=value` as two words, for some of the options."""
    parts = [(arg, *arg.partition("=")) for arg in args]
    pairs = [[o, value] if is_set and o in options else [arg] for arg, o, is_set, value in parts]
    return [word for pair in pairs for word in pair]


def help_lines(name: str, words: str) -> Iterator[str]:
    """Lines of help: the name of an option, and its text wrapped beside it."""
    first, *others = textwrap.wrap(words, WIDTH - INDENT) or [""]
    if len(name) > INDENT - 3:
        yield f"  {name}"
        name = ""
    yield f"  {name:<{INDENT - 2}}{first}".rstrip()
    yield from (" " * INDENT + line for line in others)


def _given(call: ast.Call, tree: ast.Module) -> Iterator[Argument]:
    """The arguments that a call adds to the parser; none for other calls."""
    function = call.func
    if not (isinstance(function, ast.Attribute) and ast.unparse(function.value) == "parser"):
        return
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if function.attr == "add_argument":
        names = [_value(word, tree) for word in call.args]
        default = _plain(options["default"]) if "default" in options else ""
        words = _value(options["help"], tree) if "help" in options else ""
        yield Argument(names[-1], words, default)
    elif function.attr == "add_function_arguments":
        skip = ast.literal_eval(options["skip"]) if "skip" in options else set()
        yield from (a for a in _of(ast.unparse(call.args[0]), tree) if a.name[2:] not in skip)


def _value(node: ast.expr, tree: ast.Module) -> str:
    """A text in the source, or the constant of that name."""
    if isinstance(node, ast.Name):
        constants = [n for n in tree.body if isinstance(n, ast.Assign)]
        named = (n.value for n in constants if ast.unparse(n.targets[0]) == node.id)
        return _value(next(named), tree)
    return str(ast.literal_eval(node))


def _of(name: str, tree: ast.Module) -> Iterator[Argument]:
    """The arguments of a function or dataclass of this file, or of what it is imported from.

    What a function hands on as `**name` is among them.
    """
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            words = _described(ast.get_docstring(node) or "")
            for field in [part for part in node.body if isinstance(part, ast.AnnAssign)]:
                own, told = ast.unparse(field.target), _plain(field.value) if field.value else ""
                yield Argument(f"--{own}", words[own], told, ast.unparse(field.annotation))
        if isinstance(node, ast.FunctionDef) and node.name == name:
            words, given = _described(ast.get_docstring(node) or ""), node.args
            defaults = [None] * (len(given.args) - len(given.defaults)) + [*given.defaults]
            for argument, default in zip(given.args, defaults):
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                group = isinstance(default, ast.Name)
                told = "" if default is None or group else _plain(default)
                yield Argument(f"--{argument.arg}", words.get(argument.arg, ""), told, kind)
                # What is made once, as a default, is a dataclass: its fields are settings.
                for inner in _of(kind, tree) if group else ():
                    yield replace(inner, name=f"--{argument.arg}.{inner.name[2:]}")
            if given.kwarg:
                yield from _of(_handed_on(node, given.kwarg.arg), tree)
        elif isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            file = PACKAGE.joinpath(*(node.module or "").split(".")[1:]).with_suffix(".py")
            yield from _of(name, ast.parse(file.read_text(encoding="utf-8")))


def _handed_on(function: ast.FunctionDef, name: str) -> str:
    """What a function calls with its `**name`."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    taken = [(ast.unparse(c.func), k) for c in calls for k in c.keywords if k.arg is None]
    return next(called for called, keyword in taken if ast.unparse(keyword.value) == name)


def _plain(default: ast.expr) -> str:
    """A default as one would type it; empty for what is off, or is no literal."""
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return ""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if value is None or value is False:
        return ""
    return "true" if value is True else str(value)


def _described(docstring: str) -> dict[str, str]:
    """Help by argument, from a docstring in Google's style."""
    section = re.split(r"\n(?:Args|Attributes):\n", docstring)[-1]
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^    (\*{0,2}\w+): ((?:.|\n(?!    [\w*]))*)", section, re.M)
    return {name: " ".join(words.split()) for name, words in found}
