"""How many workers find room."""

from __future__ import annotations

import pytest

from stoker.training.fault_tolerance.capacity import workers_that_fit


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
