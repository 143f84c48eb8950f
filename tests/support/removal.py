"""The line in which a command of missingness fails."""

from __future__ import annotations

import pytest

from cfmask.commands.main import main

TINY = "open_clip:tiny-clip"


def fails(capsys, *args: str) -> str:
    """The one line that the command prints before it ends with code 2."""
    with pytest.raises(SystemExit) as end:
        main(["missingness", *args])
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
