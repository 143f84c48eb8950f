"""The notebook of the documentation runs, small in this process and whole in a kernel."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

from cfmask import ShiftReport

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SMALL = {
    "max_epochs=6": "max_epochs=1",
    "DigitsData()": "DigitsData(48, 16, batch_size=16)",
    "class_names=digits.CLASS_NAMES)": "class_names=digits.CLASS_NAMES, images=20)",
}


def test_the_cells_run_one_after_the_other():
    matplotlib.use("agg")
    notebook = nbformat.read(NOTEBOOK, 4)
    names: dict[str, object] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = cell.source
            for text, small in SMALL.items():
                source = source.replace(text, small)
            exec(source, names)
    assert isinstance(names["report"], ShiftReport)
    assert names["report"].models == ["zero-shot", "tuned", "WiSE-FT 0.5"]


def test_it_lies_there_without_answers():
    nbformat.validate(notebook := nbformat.read(NOTEBOOK, 4))
    assert all(not cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_a_kernel_runs_it_whole():
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    report = notebook.cells[-2].outputs[-1].data
    assert "zero-shot" in report["text/html"]
