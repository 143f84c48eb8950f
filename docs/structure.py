"""Draw the rooms of the package on their floors: ``python docs/structure.py``.

A room is a folder of the package or a file beside the folders. An arrow leads from a room to one
that it imports from. `FLOORS` says which may import which: only what lies below.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cfmask"

# Rooms from the ground up; those of one line import none of each other.
FLOORS = """
errors version losses masked_maps typed_json signatures digit_styles
internals
precision attention
processes files trust terminal decoding layer_masking wordnet digits labels
heads images weights
spec text frame
classifier shift tiny_clip descriptions
checkpoint counterfactual relevance
families saved_relevance package_cam data
shifts methods
evaluation
views
reporting inference
runs missingness
comparison
exporting
merging
__init__
commands
__main__
"""
ROWS = [line.split() for line in FLOORS.strip().splitlines()]
FLOOR = {room: floor for floor, rooms in enumerate(ROWS) for room in rooms}
FILES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in PACKAGE.rglob("*.py")}


def room(name: str) -> str:
    """`data` for `data/epochs`, `images` for `images`."""
    return name.split("/")[0]


def imported(path: Path) -> set[str]:
    """Files of the package that a file imports anywhere in its text, as keys of `FILES`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cfmask":
            base = "/".join((node.module or "").split(".")[1:])
            for name in (f"{base}/{alias.name}".lstrip("/") for alias in node.names):
                found.add(name if name in FILES else base or "__init__")
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {"/".join(name[1:]) or "__init__" for name in names if name[0] == "cfmask"}
    return found


# Which files import which. The public door names what lies behind it; it is no arrow.
ARROWS = {
    name: imported(path) - {name}
    for name, path in FILES.items()
    if not name.endswith("/__init__") and name != "__init__"
}


def draw(out: Path) -> None:
    """Write the picture: a row for each floor, the ground floor at the bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.75 * len(ROWS)), layout="constrained")
    axes = figure.add_subplot()
    places = {
        name: (2 * (k + 0.5 - len(rooms) / 2), floor)
        for floor, rooms in enumerate(ROWS)
        for k, name in enumerate(rooms)
    }
    pairs = {(room(name), room(other)) for name, others in ARROWS.items() for other in others}
    for start, end in sorted(pairs):
        # Everything may raise the one error.
        if end not in (start, "errors"):
            style = {"arrowstyle": "->", "color": "0.75", "lw": 0.6, "shrinkA": 9, "shrinkB": 9}
            axes.annotate("", places[end], places[start], arrowprops=style)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"}
        axes.text(x, y, name, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.set(xlim=(-7.5, 7.5), ylim=(-0.5, len(ROWS) - 0.5))
    axes.axis("off")
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("structure.png"))
    draw(parser.parse_args().out)
