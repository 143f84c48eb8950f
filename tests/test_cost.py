from __future__ import annotations

import sys
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from cfmask.runs.cost import step_cost

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from step_cost import methods, step


def test_a_step_costs_no_more_than_the_algorithm_needs():
    pair = methods("ViT-B-32-quickgelu")
    costs = {name: step_cost(method, 4) for name, method in pair.items()}
    # Torch's counter leaves out the CPU's fused attention; the summary counts it.
    counted = {}
    for name, method in pair.items():
        with FlopCounterMode(display=False) as counter:
            step(method, 2)
        counted[name] = counter.get_total_flops() / 2
        assert counted[name] < costs[name].flops < 1.02 * counted[name]
    assert counted["plain"] <= 24.3e9
    assert counted["masked"] <= 64.8e9
    assert counted["of loss"] <= 57e9
    assert costs["masked"].saved_bytes <= 1.15 * costs["plain"].saved_bytes
