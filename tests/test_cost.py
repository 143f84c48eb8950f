from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from step_cost import gigaflops, methods


def test_a_step_costs_no_more_than_the_algorithm_needs():
    pair = methods("ViT-B-32-quickgelu")
    assert gigaflops(pair["plain"]) == pytest.approx(24.2, abs=0.1)
    assert gigaflops(pair["masked"]) <= 64.8
