"""Help and misspelt options of all commands, which are answered without a model library."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import import_module

import pytest

from cfmask.commands.main import COMMANDS, main
from cfmask.commands.outline import arguments
from cfmask.commands.parser import OneLineParser

OTHERS = sorted(set(COMMANDS) - {"train"})


class Asked(BaseException):
    """Carries the parser that a command has made."""


@pytest.mark.parametrize("name", OTHERS)
def test_the_help_has_all_that_the_parser_takes(name, monkeypatch, capsys):
    def stop(parser, *args, **options):
        raise Asked(parser)

    module, function, _ = COMMANDS[name]
    with monkeypatch.context() as patch, pytest.raises(Asked) as asked:
        patch.setattr(OneLineParser, "parse_args", stop)
        getattr(import_module(f"cfmask.commands.{module}"), function)(["x"])
    parser = asked.value.args[0]
    taken = {o for o in parser._option_string_actions if o[:2] == "--" and o[-1] != "+"}
    known = {a.name for a in arguments(module)}
    assert {o for o in known if o[:2] == "--"} == {o for o in taken if not o.endswith("help")}
    alone = [a.dest for a in parser._actions if not a.option_strings]
    assert [o for o in sorted(known) if o[:2] != "--"] == sorted(alone)
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert all(f"  {o}" in shown for o in known if o[:2] == "--")
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for argument in arguments(module):
        assert argument.words and "**" not in argument.words, argument
        assert argument.words.rstrip(".") in words


@pytest.mark.parametrize("name", OTHERS)
def test_all_of_the_help_is_there(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help-all"])
    assert not end.value.code
    assert "(type: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "runs/dmeo"], "runs/dmeo does not exist"),
        (["predict", "runs/dmeo", "x.png"], "runs/dmeo does not exist"),
        (["export", "nowhere", "--to", "onnx"], "nowhere does not exist"),
        (["pack", "nowhere", "--out", "x"], "nowhere does not exist"),
        (["eval", "timm:resnet50", "--shift-sets", "x"], "There is no option --shift-sets"),
    ],
)
def test_what_is_not_there_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert said in line


def test_dashes_stand_for_underscores(tmp_path, capsys):
    main(["check", "--data-root", str(tmp_path)])
    assert "0 of " in capsys.readouterr().out


def test_help_and_typos_need_no_model_library():
    code = """
import sys, cfmask.commands.main as m
m.main(["--help"])
wrong = [[name, "--lrr", "1"] for name in m.COMMANDS] + [["eval", "nowhere"], ["evla"]]
for words in [[name, "--help"] for name in m.COMMANDS] + wrong:
    try: m.main(words)
    except SystemExit: pass
heavy = {"torch", "torchvision", "pytorch_lightning", "timm", "numpy", "jsonargparse"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name}" in done.stdout for name in COMMANDS)
    assert "Nearest: --lr" in done.stderr
    assert done.stderr.count("There is no option --lrr") == len(COMMANDS)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of the GNU C library")
def test_a_buffer_that_was_freed_is_not_fetched_anew_from_the_system():
    code = """
import resource, sys, cfmask.commands.main as m
def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 50_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fetched(), print(fetched())
m._keep_freed_memory()
fetched(), print(fetched())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10 * max(after, 1)
