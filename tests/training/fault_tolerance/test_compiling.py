"""The watchdog while torch compiles: a compilation is no stall, and a stall in one is found."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from stoker.recipe import parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.fault_tolerance.guard import Guard
from stoker.training.fault_tolerance.watchdog import Progress, Watchdog, processor_seconds
from stoker.training.step.compilation import watched_compilation

RECIPE = """
name: compiling
storage: {storage}
data: {{url: {storage}/data}}
model: {{name: digitsnet}}
batch: {{total: 4, micro: 2}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 2}}
compile: {compile}
workers: {{gpus: 0, cpus: 1, stall_timeout_s: 500}}
"""


class Machine:
    """A clock and a processor that a test moves."""

    def __init__(self) -> None:
        self.time, self.used = 100.0, 7.0

    def goes_on(self, seconds: int, load: float, progress: Progress) -> bool:
        """Whether a stall was seen in ``seconds`` seconds of ``load`` processors, polled each second."""
        found = []
        for _ in range(seconds):
            self.time += 1
            self.used += load
            found.append(progress.is_stalled())
        return any(found)


def watched() -> tuple[Machine, Progress]:
    machine = Machine()
    return machine, Progress(60, lambda: machine.time, lambda: machine.used)


def test_without_a_compilation_only_a_heartbeat_is_progress() -> None:
    machine, progress = watched()
    assert not machine.goes_on(60, 2.0, progress)
    progress.heartbeat()
    assert not machine.goes_on(60, 2.0, progress)
    assert machine.goes_on(1, 2.0, progress)


def test_a_compilation_that_uses_a_processor_may_take_longer_than_the_timeout() -> None:
    machine, progress = watched()
    machine.goes_on(50, 0.0, progress)
    progress.compile_begins()
    assert not machine.goes_on(1000, 0.2, progress)
    progress.compile_ends()
    assert not machine.goes_on(60, 0.0, progress)
    assert machine.goes_on(1, 2.0, progress), "what follows is watched as before"


def test_the_end_of_a_compilation_is_progress_also_if_nobody_looked_meanwhile() -> None:
    machine, progress = watched()
    progress.compile_begins()
    machine.time += 55
    progress.compile_ends()
    assert not machine.goes_on(60, 0.0, progress)


def test_a_twentieth_of_a_processor_is_enough_for_a_compilation() -> None:
    machine, progress = watched()
    progress.compile_begins()
    assert not machine.goes_on(200, 0.06, progress)


def test_a_compilation_that_uses_no_processor_is_a_stall_after_the_timeout() -> None:
    machine, progress = watched()
    progress.compile_begins()
    assert not machine.goes_on(1000, 1.0, progress)
    assert not machine.goes_on(60, 0.01, progress)
    assert machine.goes_on(1, 0.01, progress)


def test_processor_time_that_a_compilers_end_takes_away_is_no_progress() -> None:
    machine, progress = watched()
    progress.compile_begins()
    machine.used -= 5
    assert machine.goes_on(61, 0.0, progress)


def test_two_looks_at_the_same_moment_are_no_progress() -> None:
    machine, progress = watched()
    progress.compile_begins()
    assert not machine.goes_on(60, 0.0, progress)
    assert not progress.is_stalled()
    assert not progress.is_stalled()
    assert machine.goes_on(1, 0.0, progress)


def test_what_a_rank_reports_reaches_the_progress_that_its_watchdog_reads() -> None:
    machine, progress = watched()
    watchdog = Watchdog(0, 60.0)
    watchdog.close()  # it would look in between
    watchdog._progress = progress
    assert not machine.goes_on(60, 0.0, progress)
    watchdog.heartbeat()
    assert not machine.goes_on(50, 0.0, progress)
    watchdog.compile_begins()
    assert not machine.goes_on(1000, 1.0, progress)
    watchdog.compile_ends()
    assert machine.goes_on(61, 1.0, progress)


FORK = multiprocessing.get_context("fork")


def _spin(queue: multiprocessing.Queue[bool], below: int) -> None:
    """Use a processor in the descendant ``below`` generations further down; all live until the queue says so."""
    if below:
        child = FORK.Process(target=_spin, args=(queue, below - 1))
        child.start()
        child.join()
        return
    for n in range(10**7):
        _ = n * n
    queue.put(True)
    queue.get()


@pytest.mark.parametrize("below", [0, 1])
def test_the_time_of_descendants_that_work_counts_also_when_they_have_ended(below: int) -> None:
    done: multiprocessing.Queue[bool] = FORK.Queue()
    before = processor_seconds()
    child = FORK.Process(target=_spin, args=(done, below))
    child.start()
    assert done.get()
    assert processor_seconds() > before + 0.05
    done.put(True)
    child.join()
    assert processor_seconds() > before + 0.05


def test_a_process_that_ends_while_it_is_looked_at_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = psutil.Process.children
    ended = FORK.Process(target=int)
    ended.start()
    gone = psutil.Process(ended.pid)
    ended.join()
    monkeypatch.setattr(psutil.Process, "children", lambda *own, **how: [gone, *whole(*own, **how)])
    done: multiprocessing.Queue[bool] = FORK.Queue()
    before = processor_seconds()
    child = FORK.Process(target=_spin, args=(done, 0))
    child.start()
    assert done.get()
    assert processor_seconds() > before + 0.05
    done.put(True)
    child.join()


def test_the_time_of_the_thread_that_asks_does_not_count() -> None:
    before, began = processor_seconds(), time.thread_time()
    while time.thread_time() < began + 0.6:
        pass
    assert processor_seconds() < before + 0.3


def test_what_torch_compiles_is_watched_from_its_begin_to_its_end() -> None:
    told: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        told.append("compiles")
        return graph.forward

    def run() -> None:
        torch.compile(lambda x: x + 1, backend=backend, isolate_recompiles=True)(torch.zeros(2))

    torch._dynamo.reset()
    with watched_compilation(lambda: told.append("begins"), lambda: told.append("ends")):
        run()
    assert told == ["begins", "compiles", "ends"]
    run()
    assert told == ["begins", "compiles", "ends", "compiles"], "nothing is told of what comes later"
    with watched_compilation(lambda: told.append("begins"), lambda: told.append("ends")):
        torch._dynamo.reset()  # which forgets who watches


def test_the_guard_of_a_run_that_compiles_tells_its_watchdog(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.format(storage=tmp_path, compile="true"), "compiling.yaml")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch._dynamo.reset()
    seen = []
    try:
        with Guard(recipe, RunFolder(locate(tmp_path), "compiling"), "", torch.device("cpu")) as guard:
            progress = guard._watchdog._progress

            def backend(graph: torch.fx.GraphModule, _: object) -> object:
                seen.append(progress._seen is not None)
                return graph.forward

            torch.compile(lambda x: x * 2, backend=backend)(torch.zeros(2))
            seen.append(progress._seen is not None)
    finally:
        dist.destroy_process_group()
    assert seen == [True, False]
