"""How many workers find room."""

from __future__ import annotations

import pytest

from stoker.training.fault_tolerance.capacity import useful_workers, workers_that_fit


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ({}, 0),
        ({"a": {"CPU": 8.0, "GPU": 2.0}}, 2),
        ({"a": {"CPU": 7.0, "GPU": 2.0}, "b": {"CPU": 4.0, "GPU": 1.0}}, 2),
        ({"a": {"CPU": 64.0}, "b": {}}, 0),
        ({"a": {"CPU": 3.9999999, "GPU": 0.99999999}}, 1),  # Ray gives back what is not a whole number to the last bit
    ],
)
def test_a_worker_finds_all_it_needs_on_one_node(nodes: dict[str, dict[str, float]], found: int) -> None:
    assert workers_that_fit({"CPU": 4.0, "GPU": 1.0}, nodes) == found


@pytest.mark.parametrize(
    ("workers", "micro_batches", "useful"),
    [
        (1, 64, 1),
        (31, 64, 22),
        (32, 64, 32),
        (63, 64, 32),
        (64, 64, 64),
        (100, 64, 64),
        (5, 6, 3),
        (0, 64, 0),
        (3, 1, 1),
    ],
)
def test_workers_that_shorten_no_step_are_not_useful(workers: int, micro_batches: int, useful: int) -> None:
    assert useful_workers(workers, micro_batches) == useful


def test_useful_workers_are_as_fast_and_none_can_be_spared() -> None:
    for micro_batches in range(1, 70):
        for workers in range(1, 80):
            useful = useful_workers(workers, micro_batches)
            turns = -(-micro_batches // workers)
            assert useful <= workers
            assert -(-micro_batches // useful) == turns
            assert useful == 1 or -(-micro_batches // (useful - 1)) > turns
