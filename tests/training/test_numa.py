"""Which processors are near a GPU, from folders made like those of sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stoker.training.numa import bind_to_device, near_processors

GPU = "0000:3b:00.0"


def machine(folder: Path, lists: list[str], node: str | None) -> Path:
    """A machine whose NUMA nodes have the processors ``lists``, and that says ``node`` of its GPU."""
    for number, text in enumerate(lists):
        place = folder / f"devices/system/node/node{number}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(f"{text}\n")
    (folder / "devices/system/node/possible").write_text("0-1\n")
    device = folder / "bus/pci/devices" / GPU
    device.mkdir(parents=True)
    if node is not None:
        (device / "numa_node").write_text(f"{node}\n")
    return folder


@pytest.mark.parametrize(
    ("lists", "node", "allowed", "least", "near"),
    [
        (["0-3,8", "4-7,9-10"], "1", set(range(16)), 2, {4, 5, 6, 7, 9, 10}),
        (["0-3,8", "4-7,9-10"], "0", set(range(16)), 5, {0, 1, 2, 3, 8}),
        (["0-3,8", "4-7,9-10"], "0", set(range(16)), 6, None),
        (["0-3", "4-7"], "1", {2, 3, 4, 5}, 2, {4, 5}),
        (["0-3", "4-7"], "1", {0, 1}, 1, None),
        (["0-3", ""], "1", {0, 1}, 0, None),
        (["0-3", "4"], "1", {0, 4}, 1, {4}),
        (["0-7"], "0", set(range(8)), 1, None),
        (["0-3", "4-7"], "-1", set(range(8)), 1, None),
        (["0-3", "4-7"], "2", set(range(8)), 1, None),
        (["0-3", "4-7"], "", set(range(8)), 1, None),
        (["0-3", "4-x"], "1", set(range(8)), 1, None),
        (["0-3", "4-7"], None, set(range(8)), 1, None),
    ],
)
def test_near_are_the_allowed_processors_of_the_gpus_node_or_nothing_is_known(
    tmp_path: Path, lists: list[str], node: str | None, allowed: set[int], least: int, near: set[int] | None
) -> None:
    assert near_processors(GPU, allowed, least, machine(tmp_path, lists, node)) == near


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity here")
def test_a_rank_on_a_cpu_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("it was bound"))
    bind_to_device(torch.device("cpu"), 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity here")
def test_a_rank_is_bound_by_the_address_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        pci_domain_id, pci_bus_id, pci_device_id = 0, 0x3B, 0

    bound: list[object] = []
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Found())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3} - {process})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *told: bound.append(told))
    monkeypatch.setattr("stoker.training.numa.near_processors", lambda *told: asked.append(told) or {2, 3})
    bind_to_device(torch.device("cuda", 0), 2)
    assert asked == [(GPU, {1, 2, 3}, 2)]
    assert bound == [(0, {2, 3})]
