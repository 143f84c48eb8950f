"""Processes that exchange what lies in main memory."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from cfmask import processes


@pytest.fixture
def nccl(monkeypatch):
    """As if the default group exchanged GPU memory; the names of the groups that are opened."""
    opened = []

    def new_group(backend, timeout):
        opened.append(backend)
        return f"{backend} {len(opened)}"

    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", new_group)
    return opened


def test_one_group_of_main_memory_serves_all_gatherings(nccl, monkeypatch):
    monkeypatch.setattr(dist, "group", type("Group", (), {"WORLD": object()}))
    assert {processes._group() for _ in range(5)} == {"gloo 1"}
    assert nccl == ["gloo"]


def test_another_default_group_gets_another_one(nccl, monkeypatch):
    for number in (1, 2):
        monkeypatch.setattr(dist, "group", type("Group", (), {"WORLD": object()}))
        assert processes._group() == f"gloo {number}"


def test_where_main_memory_is_exchanged_anyway_none_is_opened(nccl, monkeypatch):
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    assert processes._group() is None
    assert nccl == []
