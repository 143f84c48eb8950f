from __future__ import annotations

import pytest

from cfmask.commands.main import main
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
        (["--resume", "-n", "4"], True, 4),
        (["-n", "5", "--resume"], True, 5),
    ],
)
def test_a_yes_or_no_option_alone_means_yes(args, resume, number):
    parser = OneLineParser()
    parser.add_argument("--resume", type=bool, default=False)
    parser.add_argument("-n", "--number", type=int, default=1)
    assert parser.parse_args(args).as_dict() == {"resume": resume, "number": number}


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--keep", "a", "b"], (["a", "b"], True, None, False)),
        (["a", "--keep", "false", "--shown"], (["a"], False, True, False)),
        (["a", "--shown", "null", "--fast", "-k"], (["a"], True, None, True)),
        (["a", "--fast", "3", "--shown", "no"], (["a"], False, False, 3)),
    ],
)
def test_a_yes_or_no_option_takes_no_positional_argument(args, wanted):
    parser = OneLineParser()
    parser.add_argument("what", type=str, nargs="+")
    parser.add_argument("-k", "--keep", type=bool, default=False)
    parser.add_argument("--shown", type=bool | None, default=None)
    parser.add_argument("--fast", type=int | bool, default=False)
    got = parser.parse_args(args)
    assert (got.what, got.keep, got.shown, got.fast) == wanted


def test_a_file_of_settings_may_follow_a_yes_or_no_option(tmp_path):
    from cfmask.commands.train_model import TrainParser

    parser = TrainParser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--resume", type=bool, default=False)
    parser.add_argument("--lr", type=float, default=1.0)
    (tmp_path / "x.yaml").write_text("lr: 2.0\n")
    got = parser.parse_args(["--resume", "-c", str(tmp_path / "x.yaml")])
    assert (got.resume, got.lr) == (True, 2.0)


def test_a_word_that_is_no_truth_is_refused(capsys):
    parser = OneLineParser()
    parser.add_argument("--resume", type=bool, default=False)
    with pytest.raises(SystemExit):
        parser.parse_args(["--resume", "maybe"])
    assert "maybe" in capsys.readouterr().err


def test_other_options_still_need_their_value(capsys):
    parser = OneLineParser()
    parser.add_argument("--number", type=int, default=1)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--number"])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["evla"], "eval"),
        (["eval", "run", "--shfts=digits"], "--shifts"),
        (["eval", "run", "--imagse", "3"], "--images"),
        (["eval", "run", "--precision=fp8"], "'fp32'"),
        (["eval", "run", "--show=acuracy"], "accuracy"),
        (["predict", "run", "a.png", "--tpo=1"], "--top"),
        (["predict", "run", "a.png", "--top=many"], "int, but got many"),
        (["show", "a.png", "--lable=x"], "--label"),
        (["show", "a.png", "--label=x", "--mask=ObjektMask"], "ObjectMask"),
        (["export", "run", "--too=onnx", "--out=x"], "--to"),
        (["pack", "x", "--shardsize=3"], "--shard_size"),
        (["check", "--dataroot=x"], "--data_root"),
        (["train", "--confg=demo"], "--config"),
        (["train", "--config=demo", "--trainer.max_epoch=1"], "--trainer.max_epochs"),
        (["train", "--config=demo", "--evaluation.shift=x"], "--evaluation.shifts"),
        (["train", "--config=demo", "--model.distil_weight=3"], "distill_weight"),
        (["train", "--config=demo", "--model=MaskedDistilation"], "MaskedDistillation"),
        (["train", "--config=demo", "--model.counterfactual.mask.treshold=1"], "threshold"),
    ],
)
def test_what_is_misspelt_is_one_line_with_the_right_name(
    words, right, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "a.png", "x"):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit) as end:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert right in line.split("Nearest: ")[-1], line
    assert "+" not in line


class Part:
    def __init__(self, again: bool = False, share: float = 1.0):
        self.again, self.share = again, share


@pytest.mark.parametrize("after", [[], ["--run=x"]])
def test_a_setting_of_a_part_alone_means_yes(after):
    parser = OneLineParser(exit_on_error=False)
    parser.add_argument("--run", type=str)
    parser.add_subclass_arguments(Part, "part")
    chosen = [f"--part={Part.__module__}.Part"]
    parsed = parser.instantiate(parser.parse_args([*chosen, "--part.again", *after])).part
    assert parsed.again is True and parsed.share == 1
