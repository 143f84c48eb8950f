"""Files that older versions wrote."""

from __future__ import annotations

from pathlib import Path

OLD = Path(__file__).parents[1] / "fixtures" / "v0.1"
