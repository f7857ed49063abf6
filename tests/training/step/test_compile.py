"""Compiled steps: static graphs, one for each size that a recipe has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from made import write_dataset
from stoker.recipe import Recipe, parse_recipe
from stoker.training.step.compilation import compiled, graphs_of
from weights.compiled import train_through_sizes
from weights.ranks import sha256_of, train_on_ranks

RECIPE = """
name: compiled
storage: {root}/runs
data:
  url: {root}/data
  image_size: 24
  resizing: {{from_size: 16, start_epoch: 0, end_epoch: 1, multiple: 8}}
  last_batch: pad
  block_samples: 4
  memory_mb: 1
  decode_threads: 1
model: {{name: digitsnet, drop_rate: 0.2}}
batch: {{total: 24, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: 2}}
workers: {{max: 2, gpus: 0, cpus: 1}}
compile: true
"""


def _recipe(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "compiled.yaml", overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    write_dataset(f"{folder}/data", {"train": [30, 23], "validation": [17]})
    return folder


def _through_and_resumed(recipe: Recipe, ranks: int, folder: Path) -> tuple[str, list[int]]:
    """The hash of the weights of a run, which one that is resumed before its last epoch has too; graphs of both."""
    through = train_through_sizes(recipe, ranks, folder)
    before = folder / "before-last.pt"
    resumed = train_through_sizes(recipe, ranks, folder.with_name(f"{folder.name}-resumed"), resumed_from=before)
    graphs = [int(weights.pop("graphs")) for weights in (through, resumed)]
    assert all(bool(torch.isfinite(value).all()) for value in through.values())
    assert sha256_of(through) == sha256_of(resumed)
    return sha256_of(through), graphs


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_run_that_is_resumed_at_another_size_has_the_bits_of_one_that_went_through_all(root: Path) -> None:
    _, graphs = _through_and_resumed(_recipe(root), 1, root / "float")
    assert graphs == [4, 2], "an epoch's micro-batches have 4 samples and the last 1, at two sizes"


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_with_exact_sums_compiled_weights_are_the_same_bits_on_1_and_2_ranks_resized_and_resumed(root: Path) -> None:
    """In the last step of an epoch, which is padded, the second rank has no sample."""
    recipe = _recipe(root, "reproducible=true")
    found = {ranks: _through_and_resumed(recipe, ranks, root / f"exact-{ranks}") for ranks in (1, 2)}
    assert found[1][0] == found[2][0]


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_compiled_static_graph_gives_the_bits_of_a_compiled_dynamic_one_on_2_ranks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DistributedDataParallel's graph, which is static where each rank has one micro-batch a step."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    overrides = "data.resizing=null", "data.last_batch=drop", "batch.total=8", "model.drop_rate=0.0"
    static = _recipe(root, *overrides, "workers.min=2")
    dynamic = _recipe(root, *overrides)
    eager = _recipe(root, *overrides, "compile=false")
    found = [runs[2].sha256 for runs in train_on_ranks([static, dynamic], [2], tmp_path, steps=4)]
    assert found[0] == found[1]
    # One step: on these almost plain images batch norms enlarge a difference a hundredfold at each.
    compiled_once, eager_once = (runs[2].weights for runs in train_on_ranks([static, eager], [2], tmp_path, steps=1))
    for name, value in eager_once.items():
        torch.testing.assert_close(compiled_once[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("overrides", "graphs"),
    [
        ([], 2 * 3),
        (["data.last_batch=drop"], 2),
        (["data.resizing=null"], 3),
        (["data.resizing=null", "data.last_batch=drop"], 1),
        (["schedule.epochs=9", "data.resizing.end_epoch=8", "data.image_size=224", "data.last_batch=drop"], 9),
    ],
)
def test_a_run_needs_a_graph_for_each_size_of_images_and_length_of_micro_batches(
    tmp_path: Path, overrides: list[str], graphs: int
) -> None:
    assert graphs_of(_recipe(tmp_path, *overrides)) == graphs


def test_a_model_is_compiled_for_more_sizes_than_torch_allows_by_default_and_never_for_any_size(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "schedule.epochs=20", "data.resizing.end_epoch=19", "data.image_size=320")
    assert graphs_of(recipe) > 3 * torch._dynamo.config.recompile_limit
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        shapes.append(inputs[0].shape)
        return graph.forward

    torch._dynamo.reset()
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        model = compiled(nn.ReLU(), recipe)
    for _ in range(2):
        for length in range(2, 2 + graphs_of(recipe)):
            assert len(model(torch.zeros(length, 2))) == length
    assert shapes == [(length, 2) for length in range(2, 2 + graphs_of(recipe))]
    assert all(isinstance(size, int) for shape in shapes for size in shape)
