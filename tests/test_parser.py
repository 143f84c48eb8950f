from __future__ import annotations

import pytest

from cfmask.commands.parser import OneLineParser


@pytest.mark.parametrize(
    ("args", "resume", "number"),
    [
        ([], False, 1),
        (["--resume"], True, 1),
        (["--resume", "--number", "2"], True, 2),
        (["--number", "3", "--resume"], True, 3),
        (["--resume", "false"], False, 1),
        (["--resume=true"], True, 1),
    ],
)
def test_a_yes_or_no_option_alone_means_yes(args, resume, number):
    parser = OneLineParser()
    parser.add_argument("--resume", type=bool, default=False)
    parser.add_argument("--number", type=int, default=1)
    assert parser.parse_args(args).as_dict() == {"resume": resume, "number": number}


def test_other_options_still_need_their_value(capsys):
    parser = OneLineParser()
    parser.add_argument("--number", type=int, default=1)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--number"])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err
