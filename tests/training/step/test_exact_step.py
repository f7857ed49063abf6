"""Steps with exact sums: the same bits on any number of ranks, after a restart, and after a step done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from made import write_dataset
from stoker.dataset import Batch, Loader
from stoker.models import build_model
from stoker.recipe import Recipe, parse_recipe
from stoker.training.optim.optimizers import load_optimizer_tensors, optimizer_tensors
from stoker.training.step.stepper import Stepper
from weights.ranks import train_on_ranks

CPU = torch.device("cpu")
RECIPE = """
name: exact
storage: {root}/runs
data: {{url: {root}/data, image_size: 16, last_batch: pad, block_samples: 4, memory_mb: 1, decode_threads: 1}}
model: {{name: digitsnet, drop_rate: 0.2}}
batch: {{total: 24, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: 20}}
ema: {{decay: 0.9}}
workers: {{max: 4, gpus: 0, cpus: 1}}
reproducible: true
gradient_clip: 1.0
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    write_dataset(f"{folder}/data", {"train": [30, 23], "validation": [17]})
    return folder


@pytest.fixture
def alone() -> Iterator[None]:
    """This process as the only rank, with one thread; afterwards as it was."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before)


def _recipe(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "exact.yaml", overrides)


def _stepper(recipe: Recipe, device: torch.device = CPU) -> Stepper:
    torch.manual_seed(0)
    model = build_model("digitsnet", classes=3, drop_rate=recipe.model.drop_rate)
    return Stepper(recipe, model, device, 3)


def _steps(recipe: Recipe) -> list[list[Batch]]:
    loader = Loader.for_training(recipe, rank=0, world_size=1)
    taken = list(loader)
    return [[batch for batch in taken if batch.step == step] for step in range(loader.steps)]


def _all_tensors(stepper: Stepper) -> dict[str, Tensor]:
    assert stepper.average is not None
    average = {f"average/{name}": value for name, value in stepper.average.model.state_dict().items()}
    state = optimizer_tensors(stepper.optimizer, stepper.model) | stepper.state_tensors()
    return stepper.model.state_dict() | average | state


def _assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_weights_average_statistics_and_totals_are_the_same_bits_on_1_to_4_ranks(root: Path, tmp_path: Path) -> None:
    """The third step of each epoch is partial: on 3 and 4 ranks some have no sample in it."""
    recipes = [_recipe(root), _recipe(root, "precision=bfloat16", "optimizer.name=adamw", "optimizer.lr=0.001")]
    for trained in train_on_ranks(recipes, (1, 2, 3, 4), tmp_path, steps=4):
        first = trained[1]
        assert first.steps_redone >= 1
        for other in trained.values():
            _assert_same(first.weights, other.weights)
            _assert_same(first.average, other.average)
            told = first.totals, first.steps_redone, first.bits_kept, first.sha256
            assert (other.totals, other.steps_redone, other.bits_kept, other.sha256) == told


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_continued_run_goes_on_with_the_same_bits(root: Path, precision: str) -> None:
    recipe = _recipe(root, f"precision={precision}", "optimizer.name=adamw")
    steps, through, second = _steps(recipe), _stepper(recipe), _stepper(recipe)
    for step, batches in enumerate(steps):
        if step == 2:
            second.model.load_state_dict(through.model.state_dict())
            load_optimizer_tensors(second.optimizer, second.model, optimizer_tensors(through.optimizer, through.model))
            second.load_state_tensors(through.state_tensors())
            assert second.average is not None
            assert through.average is not None
            second.average.model.load_state_dict(through.average.model.state_dict())
            second.run(batches, step, 5)
        done = through.run(batches, step, 24 if step < 2 else 5)
    assert done.exactness is not None
    assert done.exactness.bits_kept > 10
    _assert_same(_all_tensors(through), _all_tensors(second))


@pytest.mark.usefixtures("alone")
def test_a_step_that_outgrows_its_grid_is_done_again_as_if_it_had_not_been(root: Path) -> None:
    recipe = _recipe(root)
    batches, fresh, narrow = _steps(recipe)[0], _stepper(recipe), _stepper(recipe)
    tensors = sum(1 for _ in narrow.model.parameters())
    state = {"redone": torch.tensor([0]), "grid": torch.full((tensors,), -60, dtype=torch.int32)}
    narrow.load_state_tensors({f"exact_sums/{name}": value for name, value in state.items()})
    for stepper in (fresh, narrow):
        done = stepper.run(batches, 1, 24)
        assert done.exactness is not None
        assert done.exactness.steps_redone == 1
        assert stepper.totals[2] == 24
    _assert_same(_all_tensors(fresh), _all_tensors(narrow))
    assert torch.equal(fresh.totals, narrow.totals)
    counters = {name: value for name, value in fresh.model.state_dict().items() if "num_batches" in name}
    assert set(map(int, counters.values())) == {1}


@pytest.mark.usefixtures("alone")
def test_exact_and_float_steps_differ_by_rounding_alone(root: Path) -> None:
    overrides = "gradient_clip=null", "model.drop_rate=0.0"
    found = []
    for exact in ("true", "false"):
        recipe = _recipe(root, f"reproducible={exact}", *overrides)
        stepper = _stepper(recipe)
        stepper.run(_steps(recipe)[0], 0, 24)
        found.append(stepper.model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


class _Sized(Batch):
    """A batch that knows its size: the numbers that it is counted from lie on the host, whatever the device is."""

    @property
    def size(self) -> int:
        return len(self.numbers)


class _DispatchedReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _CalledReads(TorchFunctionMode):
    """Reads that no operator shows: ``tolist``, ``numpy``, and copies to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += getattr(func, "__name__", "") in {"tolist", "numpy", "cpu", "__array__"}
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        (["reproducible=false"], 0),
        (["reproducible=false", "precision=float16"], 0),
        (["reproducible=false", "gradient_compression=bfloat16", "optimizer.name=adamw"], 0),
        (["reproducible=true"], 1),
        (["reproducible=true", "precision=float16"], 2),
    ],
)
def test_a_step_reads_nothing_from_the_device_but_how_large_exact_gradients_were(
    root: Path, overrides: list[str], most: int
) -> None:
    recipe = _recipe(root, *overrides)
    stepper, steps = _stepper(recipe), _steps(recipe)
    stepper.run(steps[0], 0, 24)
    batches = [_Sized(b.images, b.labels, b.numbers, b.epoch, b.step, b.micro_batch) for b in steps[1]]
    with _CalledReads() as called, _DispatchedReads() as dispatched:
        stepper.run(batches, 1, 24)
    assert called.count + dispatched.count <= most
    with _DispatchedReads() as dispatched:
        stepper.totals[0].item()
    assert dispatched.count == 1, "the count itself counts"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_never_waits_for_the_gpu(root: Path, precision: str) -> None:
    recipe = _recipe(root, "reproducible=false", f"precision={precision}", "workers.gpus=1")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stepper, steps = _stepper(recipe, torch.device("cuda", 0)), _steps(recipe)
        for step in range(2):  # the first ones make buckets and the like
            stepper.run(steps[step], step, 24)
        torch.cuda.set_sync_debug_mode("error")
        stepper.run(steps[1], 2, 24)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("exact", ["true", "false"])
def test_a_static_graph_gives_the_bits_of_a_dynamic_one(root: Path, exact: str) -> None:
    overrides = f"reproducible={exact}", "batch.total=4", "workers.max=1"
    static = _recipe(root, *overrides, "data.last_batch=drop")
    steps, found = _steps(static), []
    for recipe in (static, _recipe(root, *overrides)):
        stepper = _stepper(recipe)
        for step in range(3):
            stepper.run(steps[step], step, 4)
        found.append(stepper)
    assert [stepper._parallel.static_graph for stepper in found] == [True, False]
    _assert_same(_all_tensors(found[0]), _all_tensors(found[1]))
