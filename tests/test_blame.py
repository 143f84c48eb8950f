"""What is wrong with the input is one line; a bug keeps its traceback."""

from __future__ import annotations

import os
import threading
import traceback

import pytest
from support.damaged import DAMAGED
from support.training import DEMO, FAST, fails

from cfmask import InputError
from cfmask.commands import config_files
from cfmask.commands.parser import OneLineParser, one_line_errors
from cfmask.commands.train_model import command_line, train

OWN = '''
from cfmask import FineTuning, InputError
{at_import}

class Own(FineTuning):
    """A method of one's own with a bug."""

    def __init__(self, classifier, size: int = 1):
        super().__init__(classifier)
        {in_init}
'''
BUGS = {
    "ValueError": "raise ValueError('my own bug')",
    "TypeError": "None + 1",
    "RuntimeError": "import torch; torch.zeros(2) @ torch.zeros(3)",
    "AttributeError": "self.nothing_here",
    "KeyError": "{}['x']",
    "ImportError": "import nothing_of_this_name",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Plants a module of one's own; gives the words that use it."""
    monkeypatch.syspath_prepend(tmp_path)

    def plant(at_import: str = "", in_init: str = "") -> list[str]:
        name = f"own_{abs(hash((at_import, in_init)))}"
        text = OWN.format(at_import=at_import, in_init=in_init or "self.size = size")
        (tmp_path / f"{name}.py").write_text(text)
        run = tmp_path / "run"
        return ["--config", DEMO, *FAST, f"--run={run}", f"--model={name}.Own"]

    return plant


@pytest.mark.filterwarnings("ignore:\\s*Instantiating a subclass spec")
@pytest.mark.parametrize("kind", BUGS)
@pytest.mark.parametrize("place", ["at_import", "in_init"])
def test_a_bug_of_ones_own_keeps_its_traceback(own, kind, place):
    words = own(**{place: BUGS[kind]})
    with pytest.raises(Exception) as error, one_line_errors():
        command_line(words)
    assert not isinstance(error.value, InputError)
    last = [f for f in traceback.extract_tb(error.value.__traceback__) if "own_" in f.filename]
    assert last[-1].line == BUGS[kind]


@pytest.mark.filterwarnings("ignore:\\s*Instantiating a subclass spec")
def test_a_wrong_shape_in_ones_own_encoder_is_a_bug_of_it(own):
    shapes = "lambda images, hidden=None: torch.zeros(2) @ torch.zeros(3)"
    words = own(in_init=f"import torch; classifier.encode = {shapes}")
    with pytest.raises(RuntimeError, match=r"size|shape|inconsistent"):
        train(words)


def test_input_that_ones_own_code_refuses_is_one_line(own, capsys):
    line = fails(capsys, *own(in_init="raise InputError('Expected another size.')"))
    assert line == "error: Expected another size."


@pytest.mark.filterwarnings("ignore:\\s*Dump of a value that does not round-trip")
@pytest.mark.parametrize(
    "words",
    [
        ["--model.size=abc"],
        ["--model.sice=1"],
        ["--model.classifier.image_size=[0, 0]"],
        ["--trainer.accumulate_grad_batches=0"],
        ["--trainer.devices=0"],
        ["--trainer.max_epochs=-7"],
        ["--trainer.precision=17"],
        ["--data.train_images=-3"],
    ],
)
def test_a_value_that_does_not_fit_stays_one_line(own, capsys, words):
    assert fails(capsys, *own(), *words)


def test_a_class_that_is_not_there_stays_one_line(own, capsys):
    words = own()
    assert "no attribute 'Other'" in fails(capsys, *words[:-1], words[-1][:-3] + "Other")
    assert "No module named" in fails(capsys, *words[:-1], "--model=nothing_here.Own")


def test_an_error_that_arises_while_input_is_refused_is_a_bug():
    with pytest.raises(ValueError, match="a bug"), one_line_errors():
        try:
            raise InputError("Expected x.")
        except InputError:
            raise ValueError("a bug")  # noqa: B904


def test_bytes_that_are_no_text_are_no_config_file():
    with pytest.raises(UnicodeDecodeError), one_line_errors():
        b"\xff".decode()


def test_a_users_error_about_workers_is_not_taken_for_torchs():
    with pytest.raises(RuntimeError), one_line_errors():
        raise RuntimeError("my DataLoader worker has a bug")


CONFIGS = {
    **{what: text.encode() for what, text in DAMAGED.items()},
    "other bytes": b"run: \xff\xfe",
    "a number": b"7",
    "a list": b"[1, 2]",
    "a text": b"hello",
    "a long text": b"hello " * 10_000,
    "a null byte": b"run: a\0b",
    "names of numbers": b"1: 2\n3: 4",
    "a name of nothing": b"null: 2",
    "a group that is a list": b"trainer: [1]\n",
    "deep in a group": b"model: " + b"{a: " * 60 + b"1" + b"}" * 60,
    "deep in data": b"data:\n  init_args:\n    root: " + b"[" * 40 + b"]" * 40,
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_damaged_config_is_one_line(tmp_path, capsys, what):
    file = tmp_path / "c.yaml"
    file.write_bytes(CONFIGS[what])
    line = fails(capsys, "--config", str(file), f"--run={tmp_path / 'run'}")
    assert len(line) < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_config_that_is_no_file_is_one_line(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "loop", "dangling", "", "nothing", "x" * 300, "/dev/zero"):
        assert fails(capsys, "--config", str(tmp_path / name))
    assert "is a pipe" in fails(capsys, "--config", DEMO, f"--model={tmp_path / 'pipe'}")


def test_a_config_may_come_through_a_pipe_that_is_written(tmp_path):
    parser = OneLineParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--number", type=int)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("number: 7",))
    handle = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer.start()
    writer.join()
    assert parser.parse_args(["--config", str(tmp_path / "pipe")]).number == 7
    os.close(handle)


def test_a_config_is_utf8_whatever_the_machine_speaks(tmp_path, monkeypatch):
    parser = OneLineParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", type=str)
    (tmp_path / "c.yaml").write_text("name: Käse", encoding="utf-8")
    monkeypatch.setattr(config_files.locale, "getpreferredencoding", lambda _: "latin-1")
    assert parser.parse_args(["--config", str(tmp_path / "c.yaml")]).name == "Käse"


def test_a_value_with_yaml_that_cannot_be_made_is_one_line(capsys, tmp_path):
    for text in ("!!int ''", "!!timestamp x", "[" * 5000, "1" * 5000, "a: &a [*a]"):
        assert fails(capsys, "--config", DEMO, f"--model.lr={text}", f"--run={tmp_path / 'r'}")


def test_ones_own_method_without_bugs_is_built(own):
    assert type(command_line(own()).model).__name__ == "Own"


def test_a_file_that_cannot_be_used_is_one_line_and_a_bug_about_files_is_not(capsys, tmp_path):
    from cfmask.commands.predict_images import predict_images

    with pytest.raises(SystemExit):
        predict_images([str(tmp_path / ("x" * 300)), "a.png"])
    assert "File name too long" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError), one_line_errors():
        (tmp_path / "mine").read_text()
    with pytest.raises(ConnectionError), one_line_errors():
        raise ConnectionError("no name")
