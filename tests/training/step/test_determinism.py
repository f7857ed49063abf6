"""The numerics of a process: what the switches are, and which operations no switch makes deterministic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stoker.recipe import Recipe, parse_recipe
from stoker.training.step import determinism
from stoker.training.step.determinism import nondeterministic_operations
from stoker.training.step.numerics import configure_numerics

RECIPE = """
name: numerics
storage: /tmp/none
data: {{url: /tmp/none}}
model: {{name: digitsnet}}
batch: {{total: 4, micro: 2}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
reproducible: {reproducible}
workers: {{gpus: 0, cpus: 1}}
"""


def recipe(reproducible: str) -> Recipe:
    return parse_recipe(RECIPE.format(reproducible=reproducible), "numerics.yaml")


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is recorded yet; afterwards the switches are as they were."""
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    switches = cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic
    monkeypatch.setattr(determinism, "_found", set())
    monkeypatch.setattr(determinism, "_is_recording", False)
    yield
    cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic = switches
    torch.use_deterministic_algorithms(before)


def put() -> None:
    """An operation that has no deterministic algorithm on a CPU either."""
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


def test_kernels_are_chosen_by_timing_them_unless_the_run_is_reproducible() -> None:
    configure_numerics(recipe("false"))
    assert torch.backends.cudnn.benchmark
    configure_numerics(recipe("true"))
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic


@pytest.mark.filterwarnings("always")
def test_a_reproducible_run_records_what_has_no_deterministic_algorithm_and_the_warning_is_shown(
    recwarn: pytest.WarningsRecorder,
) -> None:
    configure_numerics(recipe("true"))
    torch.zeros(3).index_put_((torch.tensor([0]),), torch.ones(1))
    assert nondeterministic_operations() == ()
    put()
    configure_numerics(recipe("true"))
    put()
    assert nondeterministic_operations() == ("put_",)
    shown = [warning for warning in recwarn if "put_ does not have a deterministic" in str(warning.message)]
    assert len(shown) == 2
