"""PyTorch's compiler is not imported by a worker that does not compile, and is itself wherever it is needed.

Each case has a process of its own: this one may have imported the compiler long ago.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from made import write_dataset
from stoker import deferred
from stoker.embedded.ports import free_ports
from stoker.recipe import parse_recipe
from stoker.training import attempts

RECIPE = """
name: lean
storage: {storage}
data: {{url: {storage}/data, image_size: 32}}
model: {{name: resnet18}}
batch: {{total: 4, micro: 2}}
optimizer: {{name: {optimizer}, lr: 0.1}}
schedule: {{epochs: 1}}
ema: {{decay: 0.9}}
reproducible: true
workers: {{gpus: 0, cpus: 1}}
"""
STAND_INS = {
    "torch._dynamo", "torch._dynamo.utils", "torch._dynamo.trace_rules", "torch._inductor", "torch._inductor.config",
}  # fmt: skip
WORKER = """
import json, os, sys
import ray.train.torch, torch
import torch.distributed as dist
from stoker.training.fault_tolerance import failure_policy
from stoker.training.attempts import _worker

dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=0, world_size=1)
os.environ["STOKER_WORKER_GROUP"] = "1"
ray.train.torch.get_device = lambda: torch.device("cpu")
failure_policy.restart_reason = lambda attempt: {}
config = {"fingerprint": "sha256:0", "lease": "", "controller": 0, "attempt": "one", "why": {}}
_worker(config | {"recipe": json.loads(sys.argv[1])})
print(json.dumps(sorted(sys.modules)))
"""
REAL = """
import torch, torch._dynamo
from torch._dynamo import utils, trace_rules
from stoker import deferred

assert torch._dynamo.__file__  # no stand-in
assert utils.get_optimize_ddp_mode() == "ddp_optimizer"
assert trace_rules.clear_lru_cache() is None
assert torch._dynamo.graph_break() is None

def double(x): return 2 * x
for disable in (torch._dynamo.disable, deferred._disable):
    assert disable(double, True, wrapping=False)(3) == 6
    assert disable(double, reason="none")(3) == 6
    assert disable(recursive=False)(double)(3) == 6
"""
LATER = """
import sys, torch
from stoker.deferred import defer_compiler

defer_compiler()
import torchvision
torch.use_deterministic_algorithms(True)
assert "sympy" not in sys.modules
{ask}
import torch._dynamo
assert torch._dynamo.__file__ and sys.modules["torch._dynamo"] is torch._dynamo
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert torch._dynamo.utils.__file__ and torch._dynamo.trace_rules.__file__
assert torch._dynamo.config.__spec__.origin
assert torch._inductor.config.deterministic is True and torch._inductor.config.__file__
compiled = torch.compile(lambda x: x + 1, backend="eager")
assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_without_compile_imports_no_compiler(tmp_path: Path, optimizer: str) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [8], "validation": [4]})
    recipe = parse_recipe(RECIPE.format(storage=tmp_path, optimizer=optimizer), "lean.yaml")
    imported = json.loads(run(WORKER, recipe.model_dump_json(), str(free_ports(1)[0])))
    assert (tmp_path / "runs/lean/result.json").exists()
    assert {name for name in imported if name.startswith(("torch._dynamo", "torch._inductor"))} - STAND_INS == set()


@pytest.mark.parametrize("compiles", [False, True])
def test_a_run_with_compile_has_the_compiler_from_the_start(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    deferred: list[bool] = []
    worker = ModuleType("worker")
    worker.train_worker = lambda config: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stoker.training.worker", worker)
    monkeypatch.setattr(attempts, "defer_compiler", lambda: deferred.append(True))
    attempts._worker({"recipe": {"compile": compiles}})
    assert deferred == [True] * (not compiles)


def test_no_garbage_is_collected_while_a_worker_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[bool] = []

    class Worker(ModuleType):
        def __getattr__(self, name: str) -> object:
            collected.append(gc.isenabled())
            return lambda config: collected.append(gc.isenabled())

    monkeypatch.setitem(sys.modules, "stoker.training.worker", Worker("worker"))
    attempts._worker({"recipe": {"compile": True}})
    assert collected[0] is False
    assert collected[-1] is True
    with pytest.raises(ImportError), deferred.importing():
        raise ImportError
    assert gc.isenabled()


def test_the_answers_are_those_of_the_compiler_where_nothing_compiles() -> None:
    run(REAL)


@pytest.mark.parametrize(
    "ask",
    [
        "import torch._dynamo.config",
        "import torch._inductor.ir",
        "from torch._dynamo.utils import same",
        "assert torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu')",
        "torch.compile(lambda x: x, backend='eager')(torch.ones(1)); torch._dynamo.reset(); "
        "torch._dynamo.utils.counters.clear()",
    ],
)
def test_whatever_else_is_asked_for_is_the_compiler_itself(ask: str) -> None:
    run(LATER.format(ask=ask))
