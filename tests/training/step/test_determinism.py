"""The numerics of a process: what the switches are, and which operations no switch makes deterministic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from made import write_dataset
from ranks import work
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
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


def recipe(reproducible: str, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(reproducible=reproducible), "numerics.yaml", overrides)


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


def test_attention_on_a_gpu_is_recorded_too() -> None:
    """These warn in words of their own (aten/src/ATen/native/transformers/cuda/attention_backward.cu)."""
    configure_numerics(recipe("true"))
    kinds = ("Flash Attention", "Memory Efficient attention", "cuDNN Attention")
    for kind in kinds:
        warnings.warn(
            f"{kind} defaults to a non-deterministic algorithm. To explicitly enable determinism …", stacklevel=1
        )
    assert set(nondeterministic_operations()) == set(kinds)


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
    assert shown


@pytest.fixture
def _alone() -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.filterwarnings("always")
def test_the_result_of_a_run_names_them_even_if_only_an_earlier_attempt_ran_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [8], "validation": [4]})
    overrides = f"storage={tmp_path}", f"data.url={tmp_path}/data", "data.image_size=16", "data.memory_mb=1"
    run = RunFolder(locate(tmp_path), "numerics")
    forward = Normalize.forward
    with monkeypatch.context() as changed:
        changed.setattr(Normalize, "forward", lambda self, images: put() or forward(self, images))
        run.begin(recipe("true", *overrides))
        work(recipe("true", *overrides))
    result = run.result()
    assert result is not None
    assert result.nondeterministic_operations == ("put_",)

    (run.location / "result.json").delete()
    monkeypatch.setattr(determinism, "_found", set())
    work(recipe("true", *overrides))
    result = run.result()
    assert result is not None
    assert result.nondeterministic_operations == ("put_",)
