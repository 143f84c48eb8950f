"""Hostile folders for tests: damage of every kind, and a watch over what a command does with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

# Modules that nothing imports unless a file from elsewhere makes it.
BAIT = ("antigravity", "this", "planted")
PLANTED = """
from pathlib import Path
from cfmask import DigitsData, GradCAM, ObjectMask, OpenClipClassifier
Path(__file__).with_name("trace").touch()
class Classifier(OpenClipClassifier): pass
class Relevance(GradCAM): pass
class Mask(ObjectMask): pass
class Data(DigitsData): pass
"""
NAMES = (
    "[red]", "[/]", "=1+1", "\x1b[31mx", "a\nb", "$x^", "<b>", "\u202eexe", "{x}", "%s", "", " ",
    ".", "..", "../../up", "/etc/passwd", "a/b", "x" * 300, "\x00", "日本", "null", "~", "-x",
    "--out=x", "antigravity.fly", "this.Zen", "planted.Relevance", "planted.Classifier",
    "os.mkdir", "subprocess.Popen", "cfmask.GradCAM", "cfmask.Classifier", "cfmask.InputError",
    "http://127.0.0.1:9/x", "hf-hub:timm/x", "local-dir:.", "open_clip:ViT-B-32/openai", "timm:x",
    "zero_shot", "linear", "map", "1e400", "nan", "digits/id", "imagenet/val", "report.json",
)  # fmt: skip


class Watch:
    """What a process does while it is watched, by Python's own audit events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: list[str] = []

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Note what a file from elsewhere must not bring about."""
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self.wrong.append(f"a program: {args[0]}")
        elif event in ("socket.connect", "socket.getaddrinfo"):
            # Processes that load images talk to each other through files.
            local = event == "socket.connect" and args[0].family == socket.AF_UNIX
            self.wrong += [] if local else [f"the network: {args}"]
        elif event == "import" and str(args[0]).partition(".")[0] in BAIT:
            self.wrong.append(f"an import: {args[0]}")
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            self.touched(args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.touched(args[1])
        elif event == "open" and _writes(args):
            self.touched(args[0])

    def touched(self, path: Any) -> None:
        """Note a change outside of the folder."""
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        inside = Path(place).is_relative_to(os.path.realpath(self.folder))
        if not inside and not place.startswith("/dev") and "__pycache__" not in place:
            self.wrong.append(f"a change outside: {path}")


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1] or "", args[2] or 0
    return bool(set("wax+") & set(mode)) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_watches: list[Watch] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watches:
        watch.see(event, args)


@contextlib.contextmanager
def watched(folder: Path, seconds: int = 100) -> Iterator[Watch]:
    """Context in which what is done is seen; it ends in an error where it hangs."""
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)
        _hook.installed = True  # type: ignore[attr-defined]
    watch = Watch(folder)

    def hangs(*args: object) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(command: Callable[[list[str]], object], args: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code of a command, and the lines that it says about what is wrong."""
    out, errors = io.StringIO(), io.StringIO()
    code: Any = 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors)
    with streams[0], streams[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            command(list(args))
        except SystemExit as end:
            code = end.code or 0
    assert "Traceback" not in errors.getvalue()
    return code, [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in what JSON or YAML holds, as keys from outside inwards."""
    if isinstance(content, dict):
        inner = list(content.items())
    elif isinstance(content, list):
        inner = list(enumerate(content[:4]))
    else:
        return [path]
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed(content: Any, changes: Sequence[tuple[float, str, Any]]) -> Any:
    """Content with values replaced, left out, renamed or wrapped, each at a share of the places."""
    for share, kind, value in changes:
        found = places(content)
        path = found[int(share * (len(found) - 1))]
        if not path:
            content = value if kind == "set" else content
            continue
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        if kind == "drop":
            del holder[key]
        elif kind == "wrap":
            holder[key] = [holder[key]] * 2
        elif kind == "rename" and isinstance(holder, dict):
            holder[str(value)[:300]] = holder.pop(key)
        else:
            holder[key] = value
    return content


def rewrite(file: Path, changes: Sequence[tuple[float, str, Any]]) -> bool:
    """Change what a file of JSON, YAML or safetensors says; False for other files."""
    data = file.read_bytes()
    if file.suffix == ".json":
        file.write_text(json.dumps(changed(json.loads(data), changes)))
    elif file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(changed(yaml.safe_load(data), changes)))
    elif file.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        texts = header.get("__metadata__", {})
        for name, text in texts.items():
            texts[name] = json.dumps(changed(json.loads(text), changes))
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    else:
        return False
    return True


def replace(file: Path, kind: str, others: Sequence[Path], share: float) -> None:
    """Put something else in a file's place."""
    other = others[int(share * (len(others) - 1))]
    content = other.read_bytes() if kind == "other" and other.is_file() else b""
    own = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "dangling":
        file.symlink_to("nowhere")
    elif kind == "linked":
        file.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind in ("empty", "other"):
        file.write_bytes(content)
    elif kind == "renamed":
        name = re.sub("[/\\0]", "_", NAMES[int(share * (len(NAMES) - 1))])[:99]
        file.with_name(f"{name}x").write_bytes(own)
