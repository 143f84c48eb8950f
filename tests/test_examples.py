"""Examples in the docstrings of public names run, and give what they say."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import cfmask

PUBLIC = {name: getattr(cfmask, name) for name in cfmask.__all__}
SHOWN = [name for name, value in PUBLIC.items() if ">>>" in (inspect.getdoc(value) or "")]


def test_what_is_used_first_has_an_example():
    first = {"Counterfactual", "AttentionRelevance", "GradCAM"}
    first |= {"MaskedDistillation", "ModuleClassifier", "save_classifier", "interpolate"}
    first |= {"evaluate", "find_shifts", "dataset_shift", "SavedAnswers", "Metric", "Preprocess"}
    assert first <= set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = doctest.DocTestFinder(recurse=False)
    (example,) = found.find(PUBLIC[name], name, globs={"cfmask": cfmask, "torch": torch})
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)
